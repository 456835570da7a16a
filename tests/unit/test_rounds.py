"""Rounds: what they ask for, what they learn from, and the front that they are judged by."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udrl_utils import evaluation
from udrl_utils.commands import SUPPORT, Command, CommandCodec, CommandError
from udrl_utils.errors import RunError
from udrl_utils.rounds import (
    best_commands,
    bounded,
    exploratory_commands,
    hindsight_rows,
    hypervolume,
    practice_commands,
    returns,
)
from udrl_utils.settings import DistillationSettings, resolve

NAMES = ["length", "relevance", "diversity"]


def buffer(n: int = 600) -> pd.DataFrame:
    """Pairs whose relevance and diversity pull against each other, as a teacher's do."""
    rng = np.random.default_rng(0)
    relevance = rng.uniform(0, 1, n)
    rows = {"task": "text_to_image", "intent": [f"koi {k % 40}" for k in range(n)], "prompt": "a koi pond"}
    diversity = 1 - relevance + rng.uniform(-0.1, 0.1, n)
    return pd.DataFrame({**rows, "length": rng.integers(3, 41, n), "relevance": relevance, "diversity": diversity})


ROWS = buffer()
CODEC = CommandCodec.fit(ROWS, NAMES, bins=10)
levels = st.none() | st.floats(0, 1)


@given(st.none() | st.integers(1, 90), levels, levels)
def test_a_feasible_command_is_left_alone_and_an_infeasible_one_becomes_feasible(
    length: int | None, relevance: float | None, diversity: float | None
) -> None:
    command = Command("text_to_image", length, relevance=relevance, diversity=diversity)
    nearest, note = CODEC.feasible(command)
    assert bool(note) == (nearest != command)
    assert CODEC.feasible(nearest) == (nearest, ""), "what was found needs no second look"
    assert set(nearest.levels) == set(command.levels) and (nearest.length is None) == (length is None)
    assert nearest.length is None or nearest.length <= CODEC.longest
    CODEC.encode(nearest)
    if note:
        with pytest.raises(CommandError, match=f"lengths 1 to {CODEC.longest}"):
            CODEC.feasible(command, strict=True)


def test_conflicting_levels_are_moved_and_single_ones_are_not() -> None:
    both = Command("text_to_image", relevance=0.95, diversity=0.95)
    nearest, note = CODEC.feasible(both)
    assert nearest != both and "asked for Command" in note
    close = (ROWS.relevance - np.quantile(ROWS.relevance, nearest.levels["relevance"])).abs() < 0.15
    close &= (ROWS.diversity - np.quantile(ROWS.diversity, nearest.levels["diversity"])).abs() < 0.15
    assert close.sum() >= SUPPORT
    for name in ("relevance", "diversity"):
        assert CODEC.feasible(Command("text_to_image", **{name: 0.95}))[1] == ""


def test_an_unknown_reward_is_refused_whatever_is_strict() -> None:
    with pytest.raises(CommandError, match="reward 'wit' is unknown"):
        CODEC.feasible(Command("text_to_image", wit=0.5))


def test_exploratory_commands_ask_for_more_than_most_pairs_got() -> None:
    commands = list(itertools.islice(exploratory_commands(ROWS, CODEC, "text_to_image", random.Random(0)), 50))
    asked = pd.DataFrame([command.levels for command in commands]).mean(axis=1)
    assert asked.mean() > returns(ROWS, CODEC).quantile(0.8)
    assert all(CODEC.feasible(command)[1] == "" for command in commands)


def test_practice_commands_ask_for_what_was_achieved_in_every_combination() -> None:
    commands = list(itertools.islice(practice_commands(ROWS, CODEC, "text_to_image", random.Random(0)), 200))
    kinds = {(c.length is not None, *sorted(c.levels)) for c in commands}
    assert len(kinds) == 2**3 - 1
    assert all(CODEC.feasible(command)[1] == "" for command in commands)


def samples() -> pd.DataFrame:
    prompts = ["a red koi in a pond", "a red koi in a pond", "koi 1", "koi under a wooden bridge at dawn"]
    rows = {"task": "text_to_image", "intent": "koi 1", "set": 0, "prompt": prompts, "asked_length": 40}
    return pd.DataFrame({**rows, "length": [6, 6, 2, 7], "relevance": 0.5, "diversity": 0.4})


def test_hindsight_says_what_was_achieved_and_is_filtered_like_a_teacher(smoke: dict) -> None:
    rows = hindsight_rows(samples(), resolve(DistillationSettings, smoke), 1)
    assert rows.prompt.tolist() == ["a red koi in a pond", "koi under a wooden bridge at dawn"]
    assert rows.length.tolist() == [6, 7] and "asked_length" not in rows and "set" not in rows
    assert set(rows.split) == {"train"} and rows.pair_id.is_unique


def test_a_round_that_filtering_emptied_is_one_clear_line(smoke: dict) -> None:
    with pytest.raises(RunError, match="round 3 wrote 4 prompts and filtering left none"):
        hindsight_rows(samples().assign(prompt="koi 1"), resolve(DistillationSettings, smoke), 3)


def test_the_buffer_keeps_the_highest_returns() -> None:
    kept = bounded(ROWS, CODEC, 100)
    assert len(kept) == 100 and len(bounded(ROWS, CODEC, 10_000)) == len(ROWS)
    assert returns(kept, CODEC).min() >= returns(ROWS.drop(kept.index), CODEC).max()


def test_hypervolume_by_hand() -> None:
    assert hypervolume([(1, 1)]) == 1
    assert hypervolume([(2, 1), (1, 2)]) == 3
    assert hypervolume([(2, 1), (1, 2), (0.5, 0.5), (-3, 9)]) == 3
    assert hypervolume([]) == 0


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0, 2)), max_size=8), st.tuples(st.floats(0, 2), st.floats(0, 2)))
def test_a_further_point_never_shrinks_the_front(points: list, further: tuple) -> None:
    assert hypervolume([*points, further]) >= hypervolume(points) - 1e-12
    assert hypervolume([*points, further]) >= further[0] * further[1] - 1e-12


def test_the_best_command_is_the_one_whose_smaller_ratio_is_highest() -> None:
    commands = [Command("text_to_image", length=8, diversity=level) for level in (0.5, 0.7, 0.9)]
    rows = {"task": "text_to_image", "command": commands, "intent": "koi"}
    measured = pd.DataFrame({**rows, "relevance": [1.4, 1.02, 0.7], "diversity": [0.8, 1.01, 1.3]})
    best, shown = best_commands(measured)
    assert best == {"text_to_image": {"length": 8, "diversity": 0.7}}
    assert shown.command.tolist()[0] == commands[1] and shown.smaller.is_monotonic_decreasing


def test_overlap_counts_the_content_words_that_are_kept() -> None:
    assert evaluation.overlap("two koi ponds", ["koi in a pond"]) == 1  # ponds by its stem; two and koi are short
    assert evaluation.overlap("dragon castle", ["a dragon", "a castle of dragons"]) == 0.75
    assert evaluation.overlap("koi", ["a cat"]) == 0
