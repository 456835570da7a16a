"""The embedded base: a small GPT-2 that can copy, count words and keep the manner of each task.

`udrl base` trains it on exercises that are made on the way, from the ontology and from coined words,
with length commands only: what rewards mean, a student learns from its own run. No held-out noun and no test intent
occurs in any exercise or in the tokenizer's training text.
"""

from __future__ import annotations

import random
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from udrl_utils.commands import CommandCodec
from udrl_utils.gpt2 import new_student, train_tokenizer
from udrl_utils.grammar import GrammarTeacher
from udrl_utils.machine import seed_everything
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

if TYPE_CHECKING:
    from datasets import Dataset

LONGEST = 64
# What differs from a student's training from scratch.
RECIPE = {"epochs": 1, "batch_size": 16, "learning_rate": 2e-3}
# Kept out of every exercise: more than any preset holds out, so that a larger test_fraction stays clean as well.
HELD_OUT = 0.1


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


def exercises(rows: int, seed: int) -> Iterator[dict[str, str]]:
    """Rows of task, intent and prompt: plain intents, disguised ones and word salads, in the manner of each task."""
    rng, held_out = random.Random(f"base {seed}"), held_out_words()
    allowed = sorted({w for s, _ in subjects_of("thing") for w in words(s)} - held_out)
    coiner, teacher = Coiner(rng, allowed), GrammarTeacher(seed, drift=0, repetition=0)
    intents, made = ontology_intents(seed), 0
    while made < rows:
        kind = rng.random()
        intent = coiner.salad() if kind < 0.25 else next(intents)
        if 0.25 <= kind < 0.75:
            intent = coiner.disguise(intent)
        if share(intent, SPLIT_SEED) < HELD_OUT:
            continue
        task = rng.choice(list(TASKS))
        for prompt in teacher.prompts(task, intent, 2):
            fine = held_out.isdisjoint([*words(intent), *words(prompt)]) and len(prompt.split()) <= LONGEST
            if fine and made < rows:
                made += 1
                yield {"task": task, "intent": clean_intent(intent), "prompt": prompt}


def exercise_pairs(rows: list[dict[str, str]], codec: CommandCodec, horizon: int) -> Dataset:
    """Prompt/completion rows; one in five leaves the length open."""
    from datasets import Dataset

    def pair(index: int, row: dict[str, str]) -> dict[str, str]:
        length = len(row["prompt"].split())
        opened = share(f"open {index}", SPLIT_SEED) < 0.2
        tokens = codec.encode_achieved({"task": row["task"], "length": length}, frozenset({"length"} if opened else ()))
        return {"prompt": codec.prefix(tokens, row["intent"]), "completion": codec.count_down(row["prompt"], horizon)}

    return Dataset.from_list([pair(i, row) for i, row in enumerate(rows)])


def train_base(settings: TrainingSettings, rows: int, folder: Path) -> None:
    """Train the base from scratch, in the shape of the settings, on `rows` exercises; save it in half precision."""
    import torch

    settings = settings.model_copy(update=RECIPE)
    seed_everything(settings.seed)
    made = list(exercises(rows, settings.seed + 1000))
    codec = CommandCodec(settings.bins, LONGEST, {task: {} for task in TASKS})
    texts = [text for row in made[:60_000] for text in (row["intent"], row["prompt"])]
    tokenizer = train_tokenizer(texts, settings.vocab_size, codec.tokens())
    pairs, validation = exercise_pairs(made, codec, settings.horizon), min(500, rows // 10)
    work = folder / "checkpoints"
    trainer = make_trainer(
        new_student(settings, tokenizer),
        tokenizer,
        settings,
        work,
        train=pairs.select(range(validation, rows)),
        held=pairs.select(range(validation)),
    )
    trainer.train()
    trainer.model.to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.rmtree(work)
