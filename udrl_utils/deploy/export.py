"""Export: a student's folder goes in; out comes a small folder from which a CPU answers without PyTorch.

CTranslate2 computes it. It has neither min-p nor guidance: it samples from the `top_k` most probable tokens and from
`top_p` of their probability. What an export costs in quality and gains in speed is measured elsewhere.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from udrl_utils.commands import CommandCodec
from udrl_utils.decoding import Sampling
from udrl_utils.engine import Batch, Engine
from udrl_utils.errors import RunError, extra
from udrl_utils.runs import RunFolder, digest, outputs_root
from udrl_utils.settings import DeploymentSettings
from udrl_utils.student import Student, find_student

# What CTranslate2 calls each precision: how weights are stored, and what they are computed in.
PRECISIONS = {"float32": "float32", "bfloat16": "bfloat16", "int8": "int8_float32"}
READ_AT_ONCE = 16  # prompts whose levels are told together
# Environment of a process that serves. Else memory grows under load for minutes: glibc raises its thresholds by and by,
# each thread has an arena, and oneDNN keeps what it prepared for each shape.
STEADY = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "1048576",
    "MALLOC_TRIM_THRESHOLD_": "16777216",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0",
}


def export(student: Path, out: Path, precision: str, top_k: int = 0, top_p: float = 1.0) -> Path:
    """Convert a student's folder to `precision`, with its tokenizer and codec, and return `out`.

    `top_k`, `top_p`: how the exported student samples. An interrupted export leaves the old folder in place.
    Raises: SettingsError without the deploy extra; RunError when there is no student.
    """
    from transformers import AutoConfig

    if not (student / "commands.json").exists():
        raise RunError(f"no student in {student}: run notebooks/03_udrl_training.ipynb first")
    new = out.with_name(f".{out.name}.part")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    write_ctranslate2(student, new, precision)
    for name in ("tokenizer.json", "commands.json", "README.md"):
        shutil.copy(student / name, new)
    positions = AutoConfig.from_pretrained(student).max_position_embeddings
    facts = {"precision": precision, "positions": positions, "top_k": top_k, "top_p": top_p}
    (new / "engine.json").write_text(json.dumps(facts, indent=1))
    shutil.rmtree(out, ignore_errors=True)
    return new.rename(out)


def write_ctranslate2(student: Path, folder: Path, precision: str) -> None:
    """Convert a Hugging Face folder's weights for CTranslate2."""
    converter = import_ctranslate2().converters.TransformersConverter(str(student))
    converter.convert(str(folder), quantization=PRECISIONS[precision], force=True)
    config = json.loads((folder / "config.json").read_text())
    # the engine demands a token for unknown text, which a byte-level vocabulary never has
    config["unk_token"] = config["unk_token"] or config["eos_token"]
    (folder / "config.json").write_text(json.dumps(config, indent=1))


class DeployedStudent(Engine):
    """An exported student, loaded from its folder. Its `top_k` and `top_p` are those of the export."""

    knows = ("seed", "temperature", "candidates")

    def __init__(self, folder: Path, facts: dict[str, Any], threads: int):
        from tokenizers import Tokenizer

        import_ctranslate2()
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        super().__init__(tokenizer, CommandCodec.load(folder), facts["positions"])
        self.folder, self.threads, self.precision = folder, threads, facts["precision"]
        self.top_k, self.top_p = facts["top_k"], facts["top_p"]
        self.name = f"CTranslate2 {self.precision}"
        self.end_token = json.loads((folder / "config.json").read_text())["eos_token"]
        self.end = tokenizer.token_to_id(self.end_token)

    @staticmethod
    def load(folder: str | Path, threads: int = 0) -> DeployedStudent:
        """Load `outputs/<run>/07_deployment/<precision>`. `threads`: of the processor; 0 for all cores.

        Raises: RunError when nothing was exported there, SettingsError without the deploy extra.
        """
        folder = Path(folder)
        if not (folder / "engine.json").exists():
            raise RunError(f"no exported student in {folder}: run notebooks/07_deployment.ipynb first")
        return DeployedStudent(folder, json.loads((folder / "engine.json").read_text()), threads)

    def tokens(self, prefix: str) -> list[str]:
        """The tokens of a prefix."""
        return self._tokenizer.encode(prefix, add_special_tokens=False).tokens

    def options(self, temperature: float) -> dict[str, Any]:
        """How CTranslate2 samples at a temperature; at 0 it takes the most probable token."""
        if temperature == 0:
            return {"sampling_topk": 1}
        return {"sampling_temperature": temperature, "sampling_topk": self.top_k, "sampling_topp": self.top_p}

    def _write(self, batches: Iterable[Batch], how: Sampling) -> Iterator[list[str]]:
        generator = self.generator(how.seed)
        for batch in batches:
            prefixes = [self.tokens(text) for text in batch.prefixes]
            most = self.most(max(map(len, prefixes)), batch.words)
            written = generator.generate_batch(
                prefixes, max_length=most, include_prompt_in_result=False, **self.options(how.temperature)
            )
            yield self.texts([result.sequences_ids[0] for result in written])

    def _stream(self, batch: Batch, how: Sampling) -> Iterator[str]:
        prefix = self.tokens(batch.prefixes[0])
        most = self.most(len(prefix), batch.words)
        steps = self.generator(how.seed).generate_tokens(prefix, max_length=most, **self.options(how.temperature))
        return filter(None, map(self.decoder(), (step.token_id for step in steps if not step.is_last)))

    def _chances(self, texts: Sequence[str], tokens: Sequence[str]) -> np.ndarray:
        ids = [self.tokens(text)[: self.positions] for text in texts]
        wanted, found = [self._tokenizer.token_to_id(token) for token in tokens], np.empty((len(texts), len(tokens)))
        order = sorted(range(len(ids)), key=lambda k: len(ids[k]))
        for part in (order[start : start + READ_AT_ONCE] for start in range(0, len(order), READ_AT_ONCE)):
            logits: np.ndarray = np.array(self.reader.forward_batch([ids[k] for k in part]))
            last = np.exp([logits[row, len(ids[k]) - 1].take(wanted) for row, k in enumerate(part)])
            found[part] = last / last.sum(1, keepdims=True)
        return found

    @cached_property
    def reader(self) -> Any:
        """The CTranslate2 generator that tells levels, for which no seed matters."""
        return self.generator(0)

    def generator(self, seed: int) -> Any:
        """A new CTranslate2 generator: a seed only reaches threads that have not sampled yet."""
        ctranslate2 = import_ctranslate2()
        ctranslate2.set_random_seed(seed)
        return ctranslate2.Generator(
            str(self.folder), compute_type=PRECISIONS[self.precision], intra_threads=self.threads
        )


def load_engine(run: RunFolder, engine: str, student: str = "") -> Engine:
    """The student of a run, or the shipped one (`student="ready"`): in PyTorch (`engine="pytorch"`), or as exported.

    Raises: RunError when there is no such student, or it was not exported to this precision since it was trained.
    """
    if engine == "pytorch":
        return Student.load(student or run / "03_student")
    exported = run.read().get("stages", {}).get("07_deployment", {}).get("settings", {})
    if exported.get("student") != student or engine not in exported["precisions"]:
        raise RunError(
            f"engine={engine!r} was not exported in run={run.name!r}: run notebooks/07_deployment.ipynb with "
            f"{engine} in precisions and student={student!r}, or set engine='pytorch'"
        )
    return DeployedStudent.load(run / "07_deployment" / engine)


def to_serve(student: str) -> tuple[Path, str, str]:
    """The 8-bit export of a student (`find_student`) or of an exported folder; its name, and its rewards' encoder.

    What notebook 07 did not export since it was trained is exported to `outputs/.served`. Raises: RunError when there
    is no student.
    """
    if (Path(student) / "engine.json").exists():
        return Path(student), Path(student).resolve().name, ""
    source, name, encoder = find_student(student)
    if (source.parent / "run.json").exists():
        with suppress(RunError):
            load_engine(RunFolder(source.parent), "int8")
            return source.parent / "07_deployment" / "int8", name, encoder
    key = digest([digest(file) for file in sorted(source.glob("*.*"))])
    folder = outputs_root() / ".served" / key
    if not (folder / "engine.json").exists():
        settings = DeploymentSettings()
        export(source, folder, "int8", settings.top_k, settings.top_p)
    return folder, name, encoder


def import_ctranslate2() -> Any:
    """The inference library of the deploy extra. Raises: SettingsError when it is not installed."""
    with extra("deploy", "deployment"):
        import ctranslate2
    return ctranslate2
