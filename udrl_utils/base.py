"""The embedded bases: small GPT-2s that can copy and count; one of them has been under commands before.

`udrl base` trains them the way a student is trained, on exercises that are made on the way: intents out of the
ontology, intents in disguise and coined words, with what the grammar writes for them. No held-out noun and no test
intent occurs in any exercise or in the tokenizer's training text, and no length that a task's students are not to see.
"""

from __future__ import annotations

import math
import os
import random
import shutil
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udrl_utils.commands import CommandCodec
from udrl_utils.dataset import command_pairs
from udrl_utils.distillation import pair_id
from udrl_utils.encoder import Encoder
from udrl_utils.gpt2 import new_student, train_tokenizer
from udrl_utils.grammar import GrammarTeacher
from udrl_utils.machine import seed_everything
from udrl_utils.rewards import annotate
from udrl_utils.settings import TrainingSettings
from udrl_utils.tasks import (
    SPLIT_SEED,
    TASKS,
    clean_intent,
    noun_heads,
    ontology_intents,
    plural,
    share,
    subjects_of,
    words,
)
from udrl_utils.trainer import make_trainer
from udrl_utils.training import seen
from udrl_utils.workers import pool, quietly

if TYPE_CHECKING:
    from concurrent.futures import Executor

    import pandas
    from datasets import Dataset

LONGEST = 64
# Kept out of every exercise: more than any preset holds out, so that a larger test_fraction stays clean as well.
HELD_OUT = 0.1
PART = 20_000  # exercises that one process makes at a time


@dataclass(frozen=True)
class Curriculum:
    """What a base is taught: how many exercises of what kinds, which rewards it is told, and how it is trained.

    salads, disguised: shares of intents without a grammar, and of those with coined words in them; the rest is plain.
    prompts: how many are written for an intent, among which diversity is measured.
    drift, repetition: how uneven the grammar is. training: what differs from a student's training from scratch; words
    are not swapped, since the exercises hold coined ones.
    """

    rows: int
    salads: float
    disguised: float
    prompts: int
    drift: float
    repetition: float
    rewards: list[str]
    training: dict[str, Any]


CURRICULA = {
    # half an hour on two cores
    "copying": Curriculum(
        225_000, 0.25, 0.5, 2, 0.0, 0.0, ["length"],
        {"epochs": 1, "batch_size": 16, "learning_rate": 2e-3, "word_swaps": 0.0, "command_dropout": 0.4},
    ),
    # seven minutes on one H200, another training beside it
    "commanded": Curriculum(
        400_000, 0.1, 0.3, 8, 0.25, 0.1, ["length", "relevance", "diversity"],
        {"epochs": 6, "batch_size": 128, "learning_rate": 2e-3, "word_swaps": 0.0},
    ),
}  # fmt: skip


class Coiner:
    """Coins words that look like English: a Markov chain over the letters of the ontology's words."""

    def __init__(self, rng: random.Random, known: list[str]):
        self.rng, self.known = rng, known
        self.following = defaultdict(list)
        for word in known:
            padded = f"^^{word}$"
            for i in range(len(padded) - 2):
                self.following[padded[i : i + 2]].append(padded[i + 2])

    def word(self) -> str:
        """A coined word of 3 to 12 letters, or for one in four a known one.

        One in ten begins like an article, so that "an" in "angler" is not taken for one and dropped.
        """
        kind = self.rng.random()
        if kind < 0.25:
            return self.rng.choice(self.known)
        if kind < 0.35:
            return self.rng.choice(("a", "an", "the")) + self._coined()
        return self._coined()

    def _coined(self) -> str:
        while True:
            word = "^^"
            while word[-1] != "$" and len(word) < 15:
                word += self.rng.choice(self.following[word[-2:]])
            if word[-1] == "$" and 3 <= len(word) - 3 <= 12:
                return word[2:-1]

    def disguise(self, intent: str) -> str:
        """The intent with about half of its longer words replaced by coined ones."""
        return " ".join(
            self.word() if len(w) > 3 and w.isalpha() and self.rng.random() < 0.5 else w for w in intent.split()
        )

    def salad(self) -> str:
        """Words without a grammar: 1 to 10 mostly, up to 24 now and then."""
        size = self.rng.randint(1, 10) if self.rng.random() < 0.9 else self.rng.randint(11, 24)
        return " ".join(self.word() for _ in range(size))


def held_out_words() -> frozenset[str]:
    """Nouns that no exercise may contain, with their plurals."""
    nouns = {w for w in noun_heads() if share(f"noun {w}", SPLIT_SEED) < HELD_OUT / 2}
    return frozenset(nouns | {plural(w) for w in nouns})


def exercises(rows: int, seed: int, curriculum: Curriculum) -> list[dict[str, str]]:
    """Rows of pair_id, task, intent and prompt, for each task; the same seed gives the same ones."""
    rng, held_out = random.Random(f"base {seed}"), held_out_words()
    allowed = sorted({w for s, _ in subjects_of("thing") for w in words(s)} - held_out)
    coiner, teacher = Coiner(rng, allowed), GrammarTeacher(seed, curriculum.drift, curriculum.repetition)
    intents, plain, made = ontology_intents(seed), curriculum.salads + curriculum.disguised, []
    while len(made) < rows:
        kind = rng.random()
        intent = coiner.salad() if kind < curriculum.salads else next(intents)
        if curriculum.salads <= kind < plain:
            intent = coiner.disguise(intent)
        if share(intent, SPLIT_SEED) < HELD_OUT or not held_out.isdisjoint(words(intent)):
            continue
        task = rng.choice(list(TASKS))
        prompts = dict.fromkeys(teacher.prompts(task, intent, curriculum.prompts))
        fine = [p for p in prompts if held_out.isdisjoint(words(p)) and len(p.split()) <= LONGEST]
        intent = clean_intent(intent)
        made += [{"pair_id": pair_id(task, intent, p), "task": task, "intent": intent, "prompt": p} for p in fine]
    return made[:rows]


def annotated_exercises(rows: int, seed: int, curriculum: Curriculum, workers: Executor) -> pandas.DataFrame:
    """Exercises, so many or up to a part more, scored like a teacher's pairs."""
    import pandas

    seeds = range(1000 * seed, 1000 * seed + math.ceil(rows / PART))
    parts = workers.map(partial(exercises, min(rows, PART), curriculum=curriculum), seeds)
    made = pandas.concat(map(pandas.DataFrame, parts), ignore_index=True)
    return annotate(made, curriculum.rewards, Encoder("minilm"))


def training_rows(
    annotated: pandas.DataFrame, codec: CommandCodec, settings: TrainingSettings, workers: Executor
) -> Dataset:
    """Prompt/completion rows, as a student is trained on."""
    from datasets import concatenate_datasets

    parts = [annotated.iloc[start : start + PART] for start in range(0, len(annotated), PART)]
    return concatenate_datasets(list(workers.map(partial(command_pairs, codec=codec, settings=settings), parts)))


def train_base(settings: TrainingSettings, curriculum: Curriculum, rows: int, folder: Path) -> None:
    """Train a base from scratch, in the shape of the settings, on so many exercises; save it in half precision."""
    import torch

    settings = settings.model_copy(update=curriculum.training)
    seed_everything(settings.seed)
    with pool(os.cpu_count() or 1, quietly, 1) as workers:
        annotated = seen(annotated_exercises(rows, settings.seed + 1, curriculum, workers), settings)
        codec = replace(CommandCodec.fit(annotated, curriculum.rewards, settings.bins), longest=LONGEST)
        pairs = training_rows(annotated, codec, settings, workers)
    few, watched, work = annotated.iloc[:30_000], min(500, len(pairs) // 10), folder / "checkpoints"
    tokenizer = train_tokenizer([*few.intent, *few.prompt], settings.vocab_size, codec.tokens())
    trainer = make_trainer(
        new_student(settings, tokenizer),
        tokenizer,
        settings,
        work,
        train=pairs.select(range(watched, len(pairs))),
        held=pairs.select(range(watched)),
    )
    trainer.train()
    trainer.model.to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.rmtree(work)
