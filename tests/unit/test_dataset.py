"""Training rows: what is left open, what is swapped, what stands in them, and in which order they are seen."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from udrl_utils.commands import CommandCodec
from udrl_utils.dataset import WordSwaps, command_pairs, left_open
from udrl_utils.settings import TrainingSettings, resolve
from udrl_utils.trainer import AlikeLengths

NAMES = ["length", "relevance"]
PAIRS = pd.DataFrame(
    {
        "pair_id": [f"{i}" for i in range(300)],
        "task": "text_to_image",
        "intent": [
            f"{animal} in a {place}" for animal, place in itertools.product(("heron", "otter", "gecko"), ["boat"] * 100)
        ],
        "prompt": [
            f"Painting of a {animal}, {animal} on a quiet boat"
            for animal in ("heron", "otter", "gecko")
            for _ in range(100)
        ],
        "length": 9,
        "relevance": np.linspace(0, 1, 300),
    }
)
CODEC = CommandCodec.fit(PAIRS, NAMES, bins=4)


@pytest.fixture
def settings(smoke: dict) -> TrainingSettings:
    return resolve(TrainingSettings, smoke | {"horizon": 4, "word_swaps": 0.5, "command_dropout": 0.3})


def test_command_dropout_is_a_share(settings: TrainingSettings) -> None:
    names = ["length", "relevance", "diversity"]
    opened = [left_open(f"{i}", names, settings) for i in range(4000)]
    assert 0.2 < np.mean([bool(names) for names in opened]) < 0.3
    assert {frozenset(), frozenset(names), frozenset({"length"})} <= set(opened)


def test_rows_are_commands_intent_and_prompt_with_its_horizon(settings: TrainingSettings) -> None:
    plain = settings.model_copy(update={"word_swaps": 0, "command_dropout": 0})
    row = command_pairs(PAIRS, CODEC, plain)[0]
    assert row["prompt"] == "<|task:text_to_image|><|length:9|><|relevance:0|>heron in a boat<|prompt|>"
    assert row["completion"] == "<|length:9|> Painting<|length:8|> of a heron, heron<|length:4|> on a quiet boat"
    row = command_pairs(PAIRS, CODEC, plain, commanded=False)[0]
    assert row["prompt"] == "<|task:text_to_image|>heron in a boat<|prompt|>"
    assert row["completion"] == PAIRS.prompt[0]


def test_a_swapped_word_is_the_same_in_intent_and_prompt(settings: TrainingSettings) -> None:
    swapped = WordSwaps(PAIRS, settings)
    changed = 0
    for row in PAIRS.to_dict("records"):
        intent, prompt = swapped(row)
        assert (intent, prompt) == swapped(row), "the same pair and seed give the same words"
        animal, _, _, boat = intent.split()
        assert prompt.casefold() == f"painting of a {animal}, {animal} on a quiet {boat}"
        changed += intent != row["intent"]
    assert 0.25 < changed / len(PAIRS) < 0.5


def test_batches_hold_alike_lengths_and_every_row_once_an_epoch() -> None:
    lengths = [int(n) for n in np.random.default_rng(0).integers(10, 90, 5003)]
    sampler = AlikeLengths(lengths, batch_size=16, seed=0)
    order = list(sampler)
    assert sorted(order) == list(range(5003)) and order == list(sampler)
    batches = [[lengths[i] for i in order[k : k + 16]] for k in range(0, len(order), 16)]
    assert np.mean([max(batch) - min(batch) for batch in batches]) < 5
    means = [np.mean(batch) for batch in batches]
    assert abs(np.corrcoef(means, means[1:] + means[:1])[0, 1]) < 0.2, "one step tells nothing of the next"
    sampler.set_epoch(1)
    assert list(sampler) != order
