"""Training teaches obedience: commands decide what a student writes, and it can tell what it wrote."""

from __future__ import annotations

import random
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from udrl_utils.commands import Command, CommandCodec
from udrl_utils.gpt2 import new_student, train_tokenizer
from udrl_utils.machine import seed_everything
from udrl_utils.rows import command_pairs
from udrl_utils.settings import TrainingSettings, resolve
from udrl_utils.student import Student
from udrl_utils.trainer import make_trainer

GRADES = ("tiny", "small", "big", "huge", "vast")
MOST = 12  # words of the longest prompt
TINY = {"base": "", "n_layer": 2, "n_head": 2, "n_embd": 64, "n_positions": 64, "vocab_size": 300}
HOW = {"epochs": 4, "batch_size": 16, "learning_rate": 3e-3, "word_swaps": 0, "command_dropout": 0.3, "bins": 5}


def pairs(count: int = 2400) -> pd.DataFrame:
    """Prompts that repeat one word, all for one intent: only a command can tell which word, and how often."""
    rng, rows = random.Random(0), []
    for k in range(count):
        grade, size = rng.randrange(len(GRADES)), rng.randint(1, MOST)
        rows.append((f"{k}", "text_to_image", "fox", " ".join([GRADES[grade]] * size), size, grade + rng.random()))
    return pd.DataFrame(rows, columns=["pair_id", "task", "intent", "prompt", "length", "grade"])


def grade(prompt: str) -> float:
    """Mean grade of the prompt's words, 0..4."""
    return float(np.mean([GRADES.index(word) if word in GRADES else 2 for word in prompt.split() or ["none"]]))


def obedience(table: pd.DataFrame, settings: TrainingSettings, folder: Path) -> dict[str, float]:
    """Spearman of commanded and achieved, per reward, of a student that is trained on the pairs from scratch; and of
    the levels that it tells and the grades.
    """
    seed_everything(0)
    codec = replace(CommandCodec.fit(table, ["length", "grade"], settings.bins), reads=True)
    tokenizer = train_tokenizer([*table.intent, *table.prompt], settings.vocab_size, codec.tokens())
    model, rows = new_student(settings, tokenizer), command_pairs(table, codec, settings, tokenizer, reading=True)
    make_trainer(model, tokenizer, settings, folder, rows, rows.select(range(16))).train()
    student = Student(model, tokenizer, codec)
    asked = [Command("text_to_image", length=k) for k in range(1, MOST + 1)] * 50
    asked += [Command("text_to_image", grade=codec.level_of(k)) for k in range(codec.bins)] * 120
    prompts = [prompt for [prompt] in student.generate(["fox"] * len(asked), asked)]
    wrote = pd.DataFrame({"asked_length": [c.length for c in asked], "length": [len(p.split()) for p in prompts]})
    wrote["asked_grade"], wrote["grade"] = [c.levels.get("grade") for c in asked], list(map(grade, prompts))
    found = {name: wrote[f"asked_{name}"].corr(wrote[name], method="spearman") for name in ("length", "grade")}
    chances = student.estimate([("fox", "text_to_image")] * len(prompts), prompts, ["grade"])["grade"]
    found["told"] = pd.Series(chances @ range(codec.bins)).corr(wrote.grade, method="spearman")
    return {name: 0.0 if value != value else value for name, value in found.items()}


@pytest.mark.slow
def test_commands_are_obeyed_and_shuffled_ones_are_not(smoke: dict, tmp_path: Path) -> None:
    settings = resolve(TrainingSettings, smoke | TINY | HOW | {"horizon": 1})
    told = pairs()
    shuffled = told.assign(**told[["length", "grade"]].sample(frac=1, random_state=0).reset_index(drop=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        obeys, ignores = (obedience(t, settings, tmp_path / n) for t, n in ((told, "told"), (shuffled, "shuffled")))
    assert min(obeys.values()) > 0.9, obeys
    assert max(abs(ignores["length"]), abs(ignores["grade"])) < 0.2, ignores
