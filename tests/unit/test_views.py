"""The view of a probe: what is off target is marked, and no text does more than being read."""

from __future__ import annotations

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hostile import HOSTILE

from udrl_utils import figures, views
from udrl_utils.commands import CommandCodec
from udrl_utils.rewards import REWARDS, Reward
from udrl_utils.views import grid, off_target


@pytest.fixture(scope="module")
def codec() -> CommandCodec:
    """Fitted on rewards that are spread evenly from 0 to 1, so that a level is its value."""
    spread = np.linspace(0, 1, 401)
    table = {"length": np.arange(401) % 40 + 1.0, "relevance": spread, "diversity": spread[::-1]}
    return CommandCodec.fit(pd.DataFrame({"task": "text_to_image", **table}), list(table), bins=10)


def samples(**columns) -> pd.DataFrame:
    given = {"prompt": ["a koi pond at dawn"], "length": [5.0], "relevance": [0.5], "diversity": [0.5]} | columns
    return pd.DataFrame({"task": "text_to_image", "intent": "koi pond", "set": 0, **given})


@pytest.mark.parametrize(
    ("asked", "achieved", "missed"),
    [
        ({"asked_length": [12]}, {"length": [14.0]}, {"length": False}),
        ({"asked_length": [12]}, {"length": [9.0]}, {"length": True}),
        ({"asked_relevance": [0.85]}, {"relevance": [0.76]}, {"relevance": False}),
        ({"asked_relevance": [0.85]}, {"relevance": [0.64]}, {"relevance": True}),
        ({"asked_relevance": [np.nan]}, {"relevance": [0.1]}, {"relevance": False}),
        ({"asked_diversity": [0.85]}, {"diversity": [np.nan]}, {"diversity": False}),
        ({}, {}, {}),
    ],
)
def test_off_target(codec, asked, achieved, missed):
    assert off_target(samples(**asked, **achieved), codec).iloc[0].to_dict() == missed


def test_a_card_shows_commanded_and_achieved_side_by_side(codec):
    page = views.probe(samples(asked_length=[12], asked_relevance=[0.55]), codec)
    text = re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL))
    assert "0 of 1 on target" in text
    assert "length 12 words 5 words ◆ off" in text
    assert "relevance level 0.55 level 0.50 (0.5) ✓" in text
    assert "diversity open level 0.50 (0.5)" in text


def test_everything_open_has_no_target(codec):
    page = views.probe(samples(), codec)
    assert "everything left open" in page
    assert "on target" not in page


def test_a_prompt_without_company_has_no_diversity(codec):
    assert "needs two prompts" in views.probe(samples(diversity=[np.nan]), codec)


def test_a_reward_of_ones_own_is_shown_like_any_other(monkeypatch):
    monkeypatch.setitem(REWARDS, "commas", Reward("commas", "count", len, source=""))
    rows = pd.DataFrame({"task": "text_to_image", "commas": np.arange(50.0)})
    codec = CommandCodec.fit(rows, ["commas"], bins=5)
    page = views.probe(samples(commas=[45.0], asked_commas=[0.1]), codec)
    assert "level 0.91" in page and "(45)" in page and "commas [count]" in page and "◆ off" in page


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_are_read_and_nothing_else(codec, text):
    tags = re.compile(r"<(?!/?(?:style|section|h4|bdi|p|span|b|div|article|table|thead|tbody|tr|th|td|i)\b)")
    probe = samples(prompt=[text], intent=text)
    kept = [probe.assign(probe=1, run="a", kind="one")]
    for page in (views.probe(probe, codec), views.sentence(text, "wrong"), views.history(kept), views.table(probe)):
        assert not tags.search(page)
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\u200b\ufeff]", page)
        assert len(page) < 20_000


def test_what_is_cut_off_is_counted():
    assert views.visible("a" * 1000, 10) == f"{'a' * 10} … (990 more characters)"
    assert views.visible("koi\u202e\x00") == "koi⟨202E⟩⟨0000⟩"
    assert views.visible("\ud800").encode() == "⟨D800⟩".encode()


def test_the_grid_holds_the_lowest_the_middle_and_the_highest_command(codec):
    asked = [0.05, 0.15, 0.25, 0.35, 0.45]
    sweeps = pd.concat(
        samples(
            prompt=[f"{name} {value}", "another"], asked_relevance=value, length=5.0, relevance=0.1, diversity=0.2
        ).assign(set=number * len(asked) + k, intent=name, reward="relevance")
        for number, name in enumerate(("koi pond", "red fox"))
        for k, value in enumerate(asked)
    ).reset_index(drop=True)
    chosen = grid(sweeps)
    assert chosen.prompt.tolist() == [f"{name} {v}" for name in ("koi pond", "red fox") for v in (0.05, 0.25, 0.45)]
    assert chosen.set.tolist() == [0, 0, 0, 1, 1, 1]
    assert views.probe(chosen, codec).count("<section") == 2


def test_a_figure_goes_into_a_page_with_twice_its_pixels(codec):
    drawn = figures.sweep(samples(asked_relevance=[0.5]).assign(reward="relevance"), codec)
    page = views.image(drawn, 'a "curve"')
    assert 'width="440"' in page and "a &#34;curve&#34;" in page


def test_a_figure_that_is_drawn_again_and_again_is_not_kept_open() -> None:
    losses = pd.DataFrame({"variant": "student", "step": [1, 2], "loss": [3.0, 2.0], "eval_loss": [None, 2.5]})
    for _ in range(3):
        assert figures.loss_curves(losses).axes
    assert not plt.get_fignums(), "a notebook would show each of them at the end of its cell"
