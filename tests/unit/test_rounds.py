"""Rounds: what they ask for and learn from; the best command."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udrl_utils import evaluation
from udrl_utils.commands import SUPPORT, Command, CommandCodec, CommandError
from udrl_utils.errors import RunError
from udrl_utils.rounds import best_commands, hindsight_rows, round_requests
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


def test_a_round_asks_for_train_intents_under_commands_of_all_kinds() -> None:
    requests = round_requests(ROWS, CODEC, 200, seed=1)
    commands = [command for _, command in requests]
    assert {intent for intent, _ in requests} == set(ROWS.intent)
    assert len({(c.length is not None, *sorted(c.levels)) for c in commands}) == 2**3 - 1
    assert all(CODEC.feasible(command)[1] == "" for command in commands)
    levels = pd.Series([c.levels["relevance"] for c in commands if "relevance" in c.levels])
    assert levels.min() < 0.1 and levels.max() > 0.9, "low levels are practised too"
    assert requests == round_requests(ROWS, CODEC, 200, seed=1) != round_requests(ROWS, CODEC, 200, seed=2)


def samples() -> pd.DataFrame:
    prompts = ["a red koi in a pond", "a red koi in a pond", "koi 1", "koi under a wooden bridge at dawn"]
    rows = {"task": "text_to_image", "intent": "koi 1", "set": 0, "prompt": prompts, "asked_length": 40}
    return pd.DataFrame({**rows, "length": [6, 6, 2, 7], "relevance": 0.5, "diversity": 0.4})


def test_hindsight_says_what_was_achieved_and_is_filtered_like_a_teacher(smoke: dict) -> None:
    rows = hindsight_rows(samples(), resolve(DistillationSettings, smoke), 1)
    assert rows.prompt.tolist() == ["a red koi in a pond", "koi under a wooden bridge at dawn"]
    assert rows.length.tolist() == [6, 7] and "asked_length" not in rows and "set" not in rows
    assert set(rows.split) == {"train"} and rows.pair_id.is_unique


def test_prompts_that_repeat_words_are_not_learned_from(smoke: dict) -> None:
    rows = samples()
    rows["prompt"] = ["a pond with a pond", *rows.prompt[1:]]
    left = hindsight_rows(rows, resolve(DistillationSettings, smoke), 1).prompt.tolist()
    assert left and "a pond with a pond" not in left
    alone = hindsight_rows(rows[:1], resolve(DistillationSettings, smoke), 1)
    assert alone.prompt.tolist() == ["a pond with a pond"], "there is nothing else to learn from"


def test_a_round_that_filtering_emptied_is_one_clear_line(smoke: dict) -> None:
    with pytest.raises(RunError, match="round 3 wrote 4 prompts and filtering left none"):
        hindsight_rows(samples().assign(prompt="koi 1"), resolve(DistillationSettings, smoke), 3)


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
