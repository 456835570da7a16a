"""Candidates: a student draws several prompts, tells their levels, and keeps the nearest to its command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from tokenizers import Tokenizer, models

from udrl_utils.commands import Command, CommandCodec, CommandError
from udrl_utils.engine import Engine
from udrl_utils.rows import command_pairs
from udrl_utils.settings import TrainingSettings, resolve

TASK = "text_to_image"
EDGES = {"relevance": [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]}
GRADES = ("tiny", "small", "big", "huge", "vast")
CODEC = CommandCodec(5, 60, {TASK: EDGES}, sampling={"candidates": 5}, reads=True)


class Reader(Engine):
    """Writes its texts in turn, and takes the level of a prompt to be the grade that it names."""

    end_token = "<|end|>"

    def __init__(self, *texts: str, codec: CommandCodec = CODEC):
        super().__init__(Tokenizer(models.BPE()), codec, 64)
        self.texts_left, self.drawn, self.read = list(texts), 0, []

    def _write(self, batches, how) -> Iterator[list[str]]:
        for batch in batches:
            self.drawn += len(batch.prefixes)
            yield [self.texts_left[k % len(self.texts_left)] for k in range(len(batch.prefixes))]

    def _chances(self, texts: Sequence[str], tokens: Sequence[str]) -> np.ndarray:
        self.read += texts
        return np.array([[grade in text for grade in GRADES] for text in texts], dtype=float)


@pytest.mark.parametrize(("level", "kept"), [(0.1, "tiny"), (0.5, "big"), (0.9, "vast")])
def test_the_nearest_to_the_command_is_kept(level: float, kept: str) -> None:
    engine = Reader(*(f"a {grade} fox" for grade in GRADES))
    assert engine.generate(["fox"], Command(TASK, relevance=level), n=2) == [[f"a {kept} fox"] * 2]
    assert engine.drawn == 10
    assert f"<|task:{TASK}|>fox<|prompt|>a big fox<|end|>" in engine.read, "without the command"


def test_a_word_too_many_counts_as_one_level() -> None:
    engine = Reader("a vast fox at dusk now", "a huge fox", codec=replace(CODEC, sampling={"candidates": 2}))
    assert engine.generate(["fox"], Command(TASK, length=5, relevance=0.9)) == [["a vast fox at dusk now"]]
    assert engine.generate(["fox"], Command(TASK, length=3)) == [["a huge fox"]]


def test_no_fault_comes_before_a_near_level() -> None:
    engine = Reader("a vast fox vast fox vast fox", "a tiny fox", codec=replace(CODEC, sampling={"candidates": 2}))
    assert engine.generate(["fox"], Command(TASK, relevance=0.9)) == [["a tiny fox"]]


@pytest.mark.parametrize(
    ("codec", "command", "options"),
    [
        (CODEC, Command(TASK), {}),
        (CODEC, Command(TASK, relevance=0.9), {"temperature": 0}),
        (CODEC, Command(TASK, relevance=0.9), {"candidates": 1}),
        (replace(CODEC, reads=False), Command(TASK, relevance=0.9), {}),
    ],
    ids=["nothing is asked for", "all would be the same", "one is wanted", "a student that cannot tell"],
)
def test_where_there_is_no_choice_one_is_drawn(codec: CommandCodec, command: Command, options: dict) -> None:
    engine = Reader("a tiny fox", "a vast fox", codec=codec)
    assert engine.generate(["fox"], command, **options) == [["a tiny fox"]]
    assert engine.drawn == 1 and not engine.read


def test_a_reward_that_a_task_does_not_have_is_not_told() -> None:
    engine = Reader("", codec=replace(CODEC, edges={TASK: EDGES, "query_rewrite": {}}))
    told = engine.estimate([("fox", TASK), ("fox", "query_rewrite")], ["a big fox", "big fox"], ["relevance"])
    assert told["relevance"][0].tolist() == [0, 0, 1, 0, 0] and np.isnan(told["relevance"][1]).all()
    with pytest.raises(CommandError, match="has not learnt to tell the levels"):
        Reader("", codec=replace(CODEC, reads=False)).estimate([("fox", TASK)], ["a big fox"], ["relevance"])


def test_each_pair_has_a_second_row_the_right_way_up(smoke: dict) -> None:
    table = pd.DataFrame(
        [("1", TASK, "fox", "a big fox", 3, 0.5, 0.1), ("2", TASK, "owl", "an owl", 2, 0.9, float("nan"))],
        columns=["pair_id", "task", "intent", "prompt", "length", "relevance", "diversity"],
    )
    codec = replace(CODEC, edges={TASK: EDGES | {"diversity": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]}}, horizon=1)
    rows = command_pairs(table, codec, resolve(TrainingSettings, smoke | {"horizon": 1}), reading=True).to_list()
    assert rows[1] == {
        "prompt": f"<|task:{TASK}|>fox<|prompt|><|length:3|> a<|length:2|> big<|length:1|> fox<|end|>",
        "completion": "<|relevance:2|><|diversity:1|>",
    }
    assert len(rows) == 3, "a pair without a value has none"
