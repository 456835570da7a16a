"""Deployment: the student as one small folder, from which a CPU answers in real time and without PyTorch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udrl_utils.commands import CommandCodec
from udrl_utils.engine import Batch, Engine, Sampling
from udrl_utils.errors import RunError, extra
from udrl_utils.runs import RunFolder
from udrl_utils.student import Student

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# How weights are stored, what they are computed in, and how CTranslate2 calls the two together.
PRECISIONS = {"float32": "float32", "bfloat16": "bfloat16", "int8": "int8_float32"}
TRAVEL = ("tokenizer.json", "commands.json", "README.md")


def export(student: Path, out: Path, precision: str, **sampling: float) -> Path:
    """Convert a student's folder for CTranslate2, with its tokenizer and codec, and return `out`.

    The folder is made beside and moved, so that an interrupted export leaves the old one.
    Raises: SettingsError without the deploy extra; RunError when there is no student.
    """
    ctranslate2 = import_ctranslate2()
    from transformers import AutoConfig

    if not (student / "commands.json").exists():
        raise RunError(f"no student in {student}: run notebooks/03_udrl_training.ipynb first")
    new = out.with_name(f".{out.name}.part")
    converter = ctranslate2.converters.TransformersConverter(str(student), copy_files=list(TRAVEL))
    converter.convert(str(new), quantization=PRECISIONS[precision], force=True)
    config = json.loads((new / "config.json").read_text())
    # a byte-level vocabulary knows every text, but the engine wants to be told a token for unknown ones
    config["unk_token"] = config["unk_token"] or config["eos_token"]
    (new / "config.json").write_text(json.dumps(config, indent=1))
    positions = AutoConfig.from_pretrained(student).max_position_embeddings
    facts = {"precision": precision, "positions": positions, "sampling": sampling}
    (new / "engine.json").write_text(json.dumps(facts, indent=1))
    shutil.rmtree(out, ignore_errors=True)
    return new.rename(out)


class DeployedStudent(Engine):
    """An exported student, loaded from one folder; computes with CTranslate2, which has neither min-p nor guidance."""

    knows = ("seed", "temperature", "top_k", "top_p")

    def __init__(self, folder: Path, tokenizer: Tokenizer, codec: CommandCodec, facts: dict[str, Any], threads: int):
        super().__init__(tokenizer, codec, facts["positions"])
        self.folder, self.threads, self.compute_type = folder, threads, PRECISIONS[facts["precision"]]
        self.sampling = Sampling(**facts["sampling"])

    @classmethod
    def load(cls, folder: str | Path, threads: int = 0) -> DeployedStudent:
        """Load `outputs/<run>/07_deployment/<precision>`, to compute on so many threads; 0 are as many as cores.

        Raises: RunError when nothing was exported there, SettingsError without the deploy extra.
        """
        from tokenizers import Tokenizer

        import_ctranslate2()
        folder = Path(folder)
        if not (folder / "engine.json").exists():
            raise RunError(f"no exported student in {folder}: run notebooks/07_deployment.ipynb first")
        facts = json.loads((folder / "engine.json").read_text())
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return cls(folder, tokenizer, CommandCodec.load(folder), facts, threads)

    def _write(self, batches: Iterable[Batch], how: Sampling) -> Iterator[list[str]]:
        generator = self.generator(how.seed)
        for batch in batches:
            prefixes = [self._tokenizer.encode(text, add_special_tokens=False).tokens for text in batch.prefixes]
            most = self._most(max(map(len, prefixes)), batch.words)
            written = generator.generate_batch(
                prefixes, max_length=most, include_prompt_in_result=False, **self._options(how)
            )
            yield self._texts([result.sequences_ids[0] for result in written])

    def _stream(self, batch: Batch, how: Sampling) -> Iterator[int]:
        prefix = self._tokenizer.encode(batch.prefixes[0], add_special_tokens=False).tokens
        most = self._most(len(prefix), batch.words)
        steps = self.generator(how.seed).generate_tokens(prefix, max_length=most, **self._options(how))
        return (step.token_id for step in steps if not step.is_last)

    def _options(self, how: Sampling) -> dict[str, Any]:
        return {"sampling_topk": how.top_k, "sampling_topp": how.top_p, "sampling_temperature": how.temperature}

    def generator(self, seed: int) -> Any:
        """A CTranslate2 generator whose threads have drawn nothing yet: only those heed a seed."""
        ctranslate2 = import_ctranslate2()
        ctranslate2.set_random_seed(seed)
        return ctranslate2.Generator(str(self.folder), compute_type=self.compute_type, intra_threads=self.threads)


def fastest_engine(run: RunFolder) -> Engine:
    """A run's deployed student, in the last of its precisions, else the trained one. Raises: RunError without both."""
    found = run.read().get("stages", {}).get("07_deployment")  # which a run forgets when its student is trained anew
    exported = found and run / "07_deployment" / found["settings"]["precisions"][-1]
    return DeployedStudent.load(exported) if exported and exported.exists() else Student.load(run / "03_student")


def import_ctranslate2() -> Any:
    """The inference library of the deploy extra. Raises: SettingsError when it is not installed."""
    with extra("deploy", "deployment"):
        import ctranslate2
    return ctranslate2
