"""Deployment: the student as one small folder, from which a CPU answers in real time and without PyTorch."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from udrl_utils.commands import CommandCodec
from udrl_utils.deploy.llama import LlamaCpp, write_gguf
from udrl_utils.engine import Batch, Engine, Sampling
from udrl_utils.runs import RunFolder
from udrl_utils.settings import RunError, extra
from udrl_utils.student import Student

# How weights are stored: by CTranslate2, which calls that and what is computed in together, or as GGUF for llama.cpp.
CTRANSLATE2 = {"float32": "float32", "bfloat16": "bfloat16", "int8": "int8_float32"}
GGUF = "q8_0"
TRAVEL = ("tokenizer.json", "commands.json", "README.md")


def export(student: Path, out: Path, precision: str, top_k: int = 0, top_p: float = 1.0) -> Path:
    """Convert a student's folder for what computes in `precision`, with its tokenizer and codec, and return `out`.

    An engine that has no min-p, by which a student draws its tokens, draws them by `top_k` and `top_p`.
    The folder is made beside and moved, so that an interrupted export leaves the old one.
    Raises: SettingsError without the deploy extra; RunError when there is no student, or it cannot be converted.
    """
    from transformers import AutoConfig

    if not (student / "commands.json").exists():
        raise RunError(f"no student in {student}: run notebooks/03_udrl_training.ipynb first")
    new = out.with_name(f".{out.name}.part")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    if precision == GGUF:
        write_gguf(student, new / "student.gguf")
    else:
        write_ctranslate2(student, new, CTRANSLATE2[precision])
    for name in TRAVEL:
        shutil.copy(student / name, new)
    own = "min_p" in engine_of(precision).knows
    cut = {"min_p": Student.sampling.min_p} if own else {"top_k": top_k, "top_p": top_p}
    positions = AutoConfig.from_pretrained(student).max_position_embeddings
    sampling = {"temperature": Student.sampling.temperature, **cut}
    facts = {"precision": precision, "positions": positions, "sampling": sampling}
    (new / "engine.json").write_text(json.dumps(facts, indent=1))
    shutil.rmtree(out, ignore_errors=True)
    return new.rename(out)


def write_ctranslate2(student: Path, folder: Path, quantization: str) -> None:
    """Convert a student's folder for CTranslate2."""
    converter = import_ctranslate2().converters.TransformersConverter(str(student))
    converter.convert(str(folder), quantization=quantization, force=True)
    config = json.loads((folder / "config.json").read_text())
    # a byte-level vocabulary knows every text, but the engine wants to be told a token for unknown ones
    config["unk_token"] = config["unk_token"] or config["eos_token"]
    (folder / "config.json").write_text(json.dumps(config, indent=1))


class DeployedStudent(Engine):
    """An exported student, loaded from one folder; a subclass computes, with a library."""

    library = ""

    def __init__(self, folder: Path, facts: dict[str, Any], threads: int):
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        super().__init__(tokenizer, CommandCodec.load(folder), facts["positions"])
        self.folder, self.threads, self.precision = folder, threads, facts["precision"]
        self.sampling = Sampling(**facts["sampling"])

    @staticmethod
    def load(folder: str | Path, threads: int = 0) -> DeployedStudent:
        """Load `outputs/<run>/07_deployment/<precision>`, to compute on so many threads; 0 are as many as cores.

        Raises: RunError when nothing was exported there, SettingsError without the deploy extra.
        """
        folder = Path(folder)
        if not (folder / "engine.json").exists():
            raise RunError(f"no exported student in {folder}: run notebooks/07_deployment.ipynb first")
        facts = json.loads((folder / "engine.json").read_text())
        return engine_of(facts["precision"])(folder, facts, threads)


class CTranslate2Student(DeployedStudent):
    """Computes with CTranslate2, fastest for many prompts at once, which has neither min-p nor guidance."""

    library = "CTranslate2"
    knows = ("seed", "temperature", "top_k", "top_p")

    def __init__(self, folder: Path, facts: dict[str, Any], threads: int):
        import_ctranslate2()
        super().__init__(folder, facts, threads)

    def _write(self, batches: Iterable[Batch], how: Sampling) -> Iterator[list[str]]:
        generator = self.generator(how.seed)
        for batch in batches:
            prefixes = [self._tokenizer.encode(text, add_special_tokens=False).tokens for text in batch.prefixes]
            most = self._most(max(map(len, prefixes)), batch.words)
            written = generator.generate_batch(
                prefixes, max_length=most, include_prompt_in_result=False, **self.options(how)
            )
            yield self._texts([result.sequences_ids[0] for result in written])

    def _stream(self, batch: Batch, how: Sampling) -> Iterator[str]:
        prefix = self._tokenizer.encode(batch.prefixes[0], add_special_tokens=False).tokens
        most = self._most(len(prefix), batch.words)
        steps = self.generator(how.seed).generate_tokens(prefix, max_length=most, **self.options(how))
        return self._pieces(step.token_id for step in steps if not step.is_last)

    @staticmethod
    def options(how: Sampling) -> dict[str, Any]:
        """What the library is told of how tokens are drawn."""
        return {"sampling_topk": how.top_k, "sampling_topp": how.top_p, "sampling_temperature": how.temperature}

    def generator(self, seed: int) -> Any:
        """A CTranslate2 generator whose threads have drawn nothing yet: only those heed a seed."""
        ctranslate2 = import_ctranslate2()
        ctranslate2.set_random_seed(seed)
        how = {"compute_type": CTRANSLATE2[self.precision], "intra_threads": self.threads}
        return ctranslate2.Generator(str(self.folder), **how)


class LlamaCppStudent(DeployedStudent):
    """Computes with llama.cpp, fastest for one prompt at a time, which has no guidance."""

    library = "llama.cpp"
    knows = ("seed", "temperature", "min_p", "top_k", "top_p")

    def __init__(self, folder: Path, facts: dict[str, Any], threads: int):
        super().__init__(folder, facts, threads)
        self.model = LlamaCpp(folder / "student.gguf", self.positions, threads)

    def _write(self, batches: Iterable[Batch], how: Sampling) -> Iterator[list[str]]:
        for part, batch in enumerate(batches):
            asked = (
                self._asked(prefix, batch.words, how, f"{part} {row}") for row, prefix in enumerate(batch.prefixes)
            )
            yield [" ".join(self.model.write(**each).split()) for each in asked]

    def _stream(self, batch: Batch, how: Sampling) -> Iterator[str]:
        return filter(None, self.model.stream(**self._asked(batch.prefixes[0], batch.words, how, "0 0")))

    def _asked(self, prefix: str, words: int, how: Sampling, place: str) -> dict[str, Any]:
        ids = self._tokenizer.encode(prefix, add_special_tokens=False).ids
        seed = random.Random(f"tokens {how.seed} {place}").getrandbits(32)
        return {"ids": ids, "most": self._most(len(ids), words), "seed": seed, **self.options(how)}

    @staticmethod
    def options(how: Sampling) -> dict[str, Any]:
        """What the library is told of how tokens are drawn."""
        order = ("temperature", "min_p", "top_k", "top_p")  # in which a Student, too, leaves tokens out
        return {"samplers": order, **{name: getattr(how, name) for name in order}}


def engine_of(precision: str) -> type[DeployedStudent]:
    """What computes in a precision."""
    return LlamaCppStudent if precision == GGUF else CTranslate2Student


def fastest_engine(run: RunFolder) -> Engine:
    """A run's deployed student, in the last of its precisions, else the trained one. Raises: RunError without both."""
    found = run.read().get("stages", {}).get("07_deployment")  # which a run forgets when its student is trained anew
    own = found and not found["settings"].get("student")  # and not the shipped one's
    exported = own and run / "07_deployment" / found["settings"]["precisions"][-1]
    return DeployedStudent.load(exported) if exported and exported.exists() else Student.load(run / "03_student")


def import_ctranslate2() -> Any:
    """The inference library of the deploy extra. Raises: SettingsError when it is not installed."""
    with extra("deploy", "deployment"):
        import ctranslate2
    return ctranslate2
