"""From items that were seen to next searches and items, and what the study makes of lists."""

from __future__ import annotations

import numpy as np
import pandas as pd

from udrl_utils.commands import Command, CommandCodec
from udrl_utils.search import study
from udrl_utils.search.catalogue import as_table
from udrl_utils.search.drawn import Judged, invent, visits
from udrl_utils.search.retrieval import Index, PromptSearch, Search, Space, next_searches, queries_of, unseen
from udrl_utils.settings import SearchSettings, resolve

CODEC = CommandCodec(10, 40, {task: {"diversity": []} for task in ("related_search", "text_to_image")})
CATALOG = as_table(
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
    return PromptSearch(Search([Space(embed, Index(embed(titles)))]), Writer(), settings)


def test_next_searches_come_from_every_item_of_a_history(smoke: dict) -> None:
    finder = finder_of(smoke, CATALOG.title.tolist())
    found = next_searches(finder, CATALOG, [[0, 2], [1, 0]], diversity=0.2)
    assert finder.writer.asked[0] == ("koi", Command("related_search", diversity=0.2))
    assert found[0] == ["koi ", "koi xx", "koi xxxx", "owl ", "owl xx", "owl xxxx"]
    assert {text.split()[0] for text in found[1]} == {"fox", "koi"}


def test_a_history_weighs_as_much_as_an_intent() -> None:
    alone, both = queries_of(CATALOG, [[0, 2], [1]], [[], ["fox den", "den"]], 0.5)
    assert alone == {"koi, pet": 0.5, "owl, pet": 0.5}
    assert both == {"fox den": 0.5, "den": 0.5, "fox, pet": 0.5}


def test_what_was_seen_is_not_recommended() -> None:
    assert unseen([[3, 1, 2], [0, 1]], [[1], [2, 0]]) == [[3, 2], [1]]


def test_every_system_is_measured_on_every_visit(smoke: dict) -> None:
    items = invent(0, 150)
    catalog = as_table(vars(item) | {"keywords": ", ".join(item.keywords), "image": ""} for item in items)
    seen = visits(items, 0, 5)
    views = study.views_of(catalog, items, 0, 50)
    table, covered = study.recommend_for(finder_of(smoke, catalog.title.tolist()), catalog, seen, views)
    assert table.groupby("system").size().to_dict() == dict.fromkeys(
        ("raw", "mmr", "student_open", "student"), len(seen)
    )
    assert table.novelty.between(0, 12).all() and set(covered) == set(table.system)


def test_the_lever_is_told_from_its_levels(smoke: dict) -> None:
    judged = [Judged("koi", "short", {"koi": 3}), Judged("owl", "short", {"owl": 1})]
    curve = study.pull_lever(finder_of(smoke, CATALOG.title.tolist()), judged, CATALOG.id.tolist(), levels=3)
    assert curve.groupby("level").size().tolist() == [2, 2, 2]
    for means, rises in (([0.1, 0.2, 0.2], True), ([0.1, 0.3, 0.2], False)):
        assert study.rises(pd.DataFrame({"level": [0, 1, 2], "diversity": means}))["monotonic"] is rises


def test_the_whole_path_is_timed_per_intent(smoke: dict) -> None:
    seconds = study.latencies(finder_of(smoke, CATALOG.title.tolist()), ["koi", "fox"])
    assert len(seconds) == 2 and min(seconds) > 0
