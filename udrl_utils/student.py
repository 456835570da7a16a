"""The student: a trained model with its tokenizer and codec, computed with PyTorch, loaded from and saved to a folder.

How it was trained and how well it obeys its commands is not known here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from udrl_utils.commands import CommandCodec
from udrl_utils.decoding import Draw, Sampling, write
from udrl_utils.engine import Batch, Engine
from udrl_utils.errors import RunError
from udrl_utils.machine import device_and_dtype, side_by_side
from udrl_utils.runs import RunFolder
from udrl_utils.settings import AnnotationSettings
from udrl_utils.tasks import DATA

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerFast

READY = DATA / "ready"  # the student that the package ships
READ_AT_ONCE = 64  # prompts whose likelihood is computed together


def ready_facts() -> dict[str, Any]:
    """Facts of the shipped student: the `encoder` of its rewards, and test `intents` by task."""
    return json.loads((READY / "ready.json").read_text(encoding="utf-8"))


class Found(NamedTuple):
    """A student that was named: its folder, its name, and the encoder of its rewards, "" where nothing tells it."""

    folder: Path
    name: str
    encoder: str


def find_student(student: str) -> Found:
    """The student that is meant by "ready", by the name or folder of a run, or by its own folder.

    Raises: RunError when there is none.
    """
    folder = Path(student)
    if student == "ready":
        return Found(READY, "ready", ready_facts()["encoder"])
    if (folder / "commands.json").exists():
        return Found(folder, folder.resolve().name, "")
    run = RunFolder(folder if (folder / "run.json").exists() else student)
    if not (run / "03_student" / "commands.json").exists():
        raise RunError(f"student={student!r} is neither ready, nor a run with 03_student, nor a student's folder")
    return Found(run / "03_student", run.name, run.settings(AnnotationSettings).encoder)


class Student(Engine):
    """A trained student with its tokenizer and codec, loaded from one folder; computes with PyTorch."""

    name = "PyTorch"

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, codec: CommandCodec):
        super().__init__(tokenizer.backend_tokenizer, codec, model.config.max_position_embeddings)
        self.model, self.tokenizer, self.end_token = model, tokenizer, tokenizer.eos_token
        if model.device.type == "cuda":  # fewer leave it idle
            self.batch_size = 512

    @classmethod
    def load(cls, folder: str | Path) -> Student:
        """Load `outputs/<run>/03_student`, or the student that the package ships: "ready".

        Raises: RunError when there is no student.
        """
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        shipped, folder = folder == "ready", READY if folder == "ready" else Path(folder)
        if not (folder / "commands.json").exists():
            mend = "make it with: udrl ready" if shipped else "run notebooks/03_udrl_training.ipynb first"
            raise RunError(f"no student in {folder}: {mend}")
        device = device_and_dtype()[0]
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)
        student = cls(model, AutoTokenizer.from_pretrained(folder, padding_side="left"), CommandCodec.load(folder))
        student.folder = folder
        return student

    def save(self, folder: Path) -> None:
        """Save beside the old student, then move file by file, commands.json last: an interruption does no harm."""
        new = folder / ".saving"
        new.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(new)
        self.tokenizer.save_pretrained(new)
        self.codec.save(new)
        (new / "README.md").write_text(model_card(self))
        for file in sorted(new.iterdir(), key=lambda file: file.name == "commands.json"):
            file.replace(folder / file.name)
        new.rmdir()

    def log_likelihood(self, prefixes: Sequence[str], prompts: Sequence[str]) -> list[float]:
        """Log-probability of each prompt and its end token after its prefix [nats], cut off where the context ends."""
        batches = []
        for start in range(0, len(prefixes), READ_AT_ONCE):
            rows = slice(start, start + READ_AT_ONCE)
            pairs = [f"{a}{b}{self.tokenizer.eos_token}" for a, b in zip(prefixes[rows], prompts[rows], strict=True)]
            fits = {"truncation": True, "max_length": self.model.config.max_position_embeddings}
            batch = self.tokenizer(pairs, padding=True, return_tensors="pt", add_special_tokens=False, **fits)
            sizes = [len(ids) for ids in self.tokenizer(list(prefixes[rows]), add_special_tokens=False).input_ids]
            batches.append((batch, sizes))
        scored = side_by_side(lambda batch: self._scores(*batch), batches)
        return [score for scores in scored for score in scores]

    def _scores(self, ids: BatchEncoding, sizes: list[int]) -> list[float]:
        """Log-probability of the tokens after the prefix, one per row of a batch; `sizes`: tokens of the prefixes."""
        import torch

        ids = ids.to(self.model.device)
        position = ids.attention_mask.cumsum(-1)
        with torch.inference_mode():
            places = (position - 1).clamp(min=0)
            logits = self.model(ids.input_ids, attention_mask=ids.attention_mask, position_ids=places).logits
        each = logits[:, :-1].float().log_softmax(-1).gather(-1, ids.input_ids[:, 1:, None])[..., 0]
        written = position[:, 1:] > torch.tensor(sizes, device=position.device)[:, None]
        return (each * written).sum(-1).tolist()

    def _write(self, batches: Iterable[Batch], how: Sampling) -> Iterator[list[str]]:
        batches = list(batches)
        steps = [self._steps(batch, Draw(how, self.model.device, part)) for part, batch in enumerate(batches)]
        with self._evaluating():
            for batch, each in zip(batches, side_by_side(list, steps), strict=True):
                written: list[list[int]] = [[] for _ in batch.prefixes]
                for rows, tokens in each:
                    for row, token in zip(rows, tokens, strict=True):
                        written[row].append(token)
                yield self.texts(written)

    def _stream(self, batch: Batch, how: Sampling) -> Iterator[str]:
        with self._evaluating():
            steps = self._steps(batch, Draw(how, self.model.device))
            yield from filter(None, map(self.decoder(), (token for _, tokens in steps for token in tokens)))

    def _steps(self, batch: Batch, draw: Draw) -> Iterator[tuple[list[int], list[int]]]:
        import torch

        prefixes = [*batch.prefixes, *batch.opened.values()]
        ids = self.tokenizer(prefixes, padding=True, return_tensors="pt", add_special_tokens=False)
        most, ids = self.most(ids.input_ids.shape[1], batch.words), ids.to(self.model.device)
        asked = (ids.input_ids, ids.attention_mask, list(batch.opened), draw, most, [self.tokenizer.eos_token_id])
        # wraps each step: a `with` around the loop would leave inference mode on in the caller between two steps
        return torch.inference_mode()(write)(self.model, *asked)

    def _chances(self, texts: Sequence[str], tokens: Sequence[str]) -> np.ndarray:
        import torch

        order = sorted(range(len(texts)), key=lambda k: len(texts[k]))
        parts = [order[start : start + READ_AT_ONCE] for start in range(0, len(order), READ_AT_ONCE)]
        wanted, found = self.tokenizer.convert_tokens_to_ids(list(tokens)), np.empty((len(texts), len(tokens)))
        fits = {"truncation": True, "max_length": self.model.config.max_position_embeddings}

        def read(part: list[int]) -> np.ndarray:
            some = [texts[k] for k in part]
            ids = self.tokenizer(some, padding=True, return_tensors="pt", add_special_tokens=False, **fits)
            ids = ids.to(self.model.device)
            places = (ids.attention_mask.cumsum(-1) - 1).clamp(min=0)
            with torch.inference_mode():
                asked = {"attention_mask": ids.attention_mask, "position_ids": places, "logits_to_keep": 1}
                logits = self.model(ids.input_ids, **asked).logits[:, -1, wanted]
            return logits.float().softmax(-1).cpu().numpy()

        with self._evaluating():
            for part, chances in zip(parts, side_by_side(read, parts), strict=True):
                found[part] = chances
        return found

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)


def model_card(student: Student) -> str:
    """The README.md of a student's folder: what it is, how to use it, and what its levels stand for."""
    codec = student.codec
    sampling = ", ".join(f"{name} {value}" for name, value in codec.sampling.items()) or "temperature 1"
    best = "\n".join(f"- {task}: `{codec.best_command(task)!r}`" for task in codec.edges)
    places = [round(k * codec.bins / 4) for k in range(5)]
    levels = "\n".join(
        f"| {task} | {name} | {' | '.join(f'{values[k]:.3f}' for k in places)} |"
        for task, rewards in codec.edges.items()
        for name, values in rewards.items()
    )
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---
# Prompt-writing student

{student.model.num_parameters() / 1e6:.1f}M parameters, trained by upside-down reinforcement learning on prompts
that a teacher wrote. It reads command tokens and an intent, and writes a prompt.
Commands: {", ".join(codec.rewards)}; lengths up to
{codec.longest} words, other rewards as quantile levels of the train split in {codec.bins} bins (`commands.json`).

    from udrl_utils.commands import Command
    from udrl_utils.student import Student
    Student.load("this folder").generate(["koi pond"], Command("{next(iter(codec.edges))}", length=18))

Sampling, unless `generate` is given other values: {sampling}.

Commands that scored best on validation intents:

{best}

What the train split achieved, at the levels {", ".join(f"{k / codec.bins:.2g}" for k in places)}:

| task | reward | lowest | low | middle | high | highest |
|---|---|---|---|---|---|---|
{levels}
"""
