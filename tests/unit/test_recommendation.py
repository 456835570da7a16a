"""From items that were seen to next searches and items, and what the study makes of lists."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from udrl_utils.commands import Command, CommandCodec
from udrl_utils.search import study
from udrl_utils.search.catalogue import as_table
from udrl_utils.search.drawn import Judged, invent, visits
from udrl_utils.search.retrieval import PromptSearch, Search, Space, next_searches, queries_of, unseen
from udrl_utils.settings import SearchSettings, resolve

CODEC = CommandCodec(10, 40, {task: {"diversity": []} for task in ("related_search", "text_to_image")})
CATALOGUE = as_table(
    {"id": title, "kind": "image", "title": title, "keywords": "pet", "image": ""} for title in ("koi", "fox", "owl")
)


class Writer:
    """Repeats what it is given, more often the higher diversity is commanded."""

    knows, codec = ("seed", "guidance"), CODEC

    def generate(self, intents, command, n=1, seed=0, guidance=1.0):
        self.asked = list(zip(intents, command, strict=True))
        return [[f"{i} {'x' * k * round(10 * c.levels.get('diversity', 0))}" for k in range(n)] for i, c in self.asked]


def embed(texts: list[str]) -> np.ndarray:
    counts = np.array([[text.count(chr(k)) + 0.01 for k in range(97, 123)] for text in texts], dtype=np.float32)
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def finder_of(smoke: dict, titles: list[str]) -> PromptSearch:
    settings = resolve(SearchSettings, smoke | {"search_prompts": 6, "search_command": ["diversity 0.5"]})
    return PromptSearch(Search([Space(embed, embed(titles))]), Writer(), settings)


def test_next_searches_come_from_every_item_of_a_history(smoke: dict) -> None:
    finder = finder_of(smoke, CATALOGUE.title.tolist())
    found = next_searches(finder, CATALOGUE, [[0, 2], [1, 0]], diversity=0.2)
    assert finder.writer.asked[0] == ("koi", Command("related_search", diversity=0.2))
    assert found[0] == ["koi ", "koi xx", "koi xxxx", "owl ", "owl xx", "owl xxxx"]
    assert {text.split()[0] for text in found[1]} == {"fox", "koi"}


def test_a_history_weighs_as_much_as_an_intent() -> None:
    alone, both = queries_of(CATALOGUE, [[0, 2], [1]], [[], ["fox den", "den"]], 0.5)
    assert alone == {"koi, pet": 0.5, "owl, pet": 0.5}
    assert both == {"fox den": 0.5, "den": 0.5, "fox, pet": 0.5}


def test_what_was_seen_is_not_recommended() -> None:
    assert unseen([[3, 1, 2], [0, 1]], [[1], [2, 0]]) == [[3, 2], [1]]


def test_every_system_is_measured_on_every_visit(smoke: dict) -> None:
    items = invent(0, 150)
    catalogue = as_table(vars(item) | {"keywords": ", ".join(item.keywords), "image": ""} for item in items)
    seen = visits(items, 0, 5)
    views = study.views_of(catalogue, items, 0, 50)
    table, covered = study.recommend_for(finder_of(smoke, catalogue.title.tolist()), catalogue, seen, views)
    assert table.groupby("system").size().to_dict() == dict.fromkeys(
        ("raw", "mmr", "student_open", "student"), len(seen)
    )
    assert table.novelty.between(0, 12).all() and set(covered) == set(table.system)


JUDGED = [Judged("koi", "short", {"koi": 3}), Judged("owl", "short", {"owl": 1})]


def test_the_lever_moves_command_and_weights_apart(smoke: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    finder, calls = finder_of(smoke, CATALOGUE.title.tolist()), []
    rank = finder.rank
    monkeypatch.setattr(finder, "rank", lambda *asked: calls.append((asked[1], asked[3])) or rank(*asked))
    curve = study.pull_lever(finder, JUDGED, CATALOGUE.id.tolist(), levels=2)
    assert curve.groupby(["way", "level"]).size().to_dict() == {(way, k): 2 for way in study.WAYS for k in (0.25, 0.75)}
    together, command, weights, control = (calls[k::4] for k in range(4))
    low, high = (finder.write(["koi", "owl"], finder.commands(diversity=level)) for level in (0.25, 0.75))
    assert low != high
    assert together == [(low, 0.25), (high, 0.75)]
    assert command == [(low, None), (high, None)], "the weights stay at those of the settings"
    usual = finder.write(["koi", "owl"], finder.commands())
    assert weights == [(usual, 0.25), (usual, 0.75)]
    free = finder.write(["koi", "owl"], finder.commands(**study.OPEN))
    assert free != usual and control == [(free, 0.25), (free, 0.75)]


def test_effects_are_the_change_of_the_same_intent_from_end_to_end(smoke: dict) -> None:
    rows = [
        (way, level, intent, base + way_gain * level)
        for way, way_gain in (("together", 0.5), ("command", 0.0))
        for level in (0.0, 0.5, 1.0)
        for intent, base in (("koi", 0.1), ("owl", 0.3))
    ]
    curve = pd.DataFrame(rows, columns=["way", "level", "intent", "diversity"])
    curve = curve.assign(form="short", ndcg_10=np.nan, recall_50=np.nan)
    effects = study.lever_effects(curve, resolve(SearchSettings, smoke))
    assert effects["together"]["diversity"] == pytest.approx({"mean": 0.5, "low": 0.5, "high": 0.5})
    assert effects["command"]["diversity"]["mean"] == 0 and "ndcg_10" not in effects["command"]
    assert study.effects_table(effects).loc["command and weights", "diversity"] == "+0.500 [+0.500, +0.500]"


def test_a_curve_that_falls_is_not_monotonic() -> None:
    for means, rises in (([0.1, 0.2, 0.2], True), ([0.1, 0.3, 0.2], False)):
        assert study.rises(pd.DataFrame({"level": [0, 1, 2], "diversity": means}))["monotonic"] is rises


def test_the_whole_path_is_timed_per_intent(smoke: dict) -> None:
    seconds = study.latencies(finder_of(smoke, CATALOGUE.title.tolist()), ["koi", "fox"])
    assert len(seconds) == 2 and min(seconds) > 0
