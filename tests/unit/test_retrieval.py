"""Indexes, fusion, re-ranking, and the metrics of ranked items."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udrl_utils.commands import Command, CommandCodec
from udrl_utils.search import study
from udrl_utils.search.drawn import Judged
from udrl_utils.search.retrieval import NOVELTY, PromptSearch, Search, Space, diversify, fuse, write_prompts
from udrl_utils.settings import SearchSettings, resolve


def units(count: int, width: int = 16, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def hashed(texts: list[str]) -> np.ndarray:
    """A vector per text that depends on nothing but the text."""
    return np.concatenate([units(1, seed=sum(map(ord, text))) for text in texts])


CODEC = CommandCodec(10, 60, {task: {"relevance": [], "diversity": []} for task in ("text_to_image", "related_search")})


class Echo:
    """Writes the intent and a number, and remembers what it was asked."""

    knows, codec = ("seed", "guidance"), CODEC

    def __init__(self):
        self.asked = []

    def generate(self, intents, command, n=1, seed=0, guidance=1.0):
        self.asked += list(zip(intents, command, strict=True))
        return [[f"{intent} {one.task} {k}" for k in range(n)] for intent, one in zip(intents, command, strict=True)]


def test_a_space_finds_what_sorting_finds() -> None:
    vectors, texts = units(300), list("abcde")
    places = Space(hashed, vectors).nearest(texts, 12)
    assert (places == np.argsort(-(hashed(texts) @ vectors.T), axis=1)[:, :12]).all()


def test_a_space_gives_all_it_has() -> None:
    assert Space(hashed, units(7)).nearest(["a", "b"], 50).shape == (2, 7)


def test_cells_find_nearly_what_a_flat_index_finds() -> None:
    vectors = units(4000)
    embed = lambda places: vectors[[int(place) for place in places]]  # noqa: E731
    flat, cells = (Space(embed, vectors, exact).nearest(list(map(str, range(50))), 10) for exact in (10_000, 100))
    assert (cells[:, 0] == flat[:, 0]).all(), "an item is nearest to itself"
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(flat, cells, strict=True)]) > 0.5


def test_fusion_sums_weighted_reciprocal_ranks() -> None:
    assert fuse([[1, 2], [2, 3]], [1, 1], 3) == {2: 1.5, 1: 1, 3: 0.5}
    assert list(fuse([[1, 2, 3], [4, 3, 5]], [1, 0.6], 3)) == [1, 3, 4], "1; 1/3 + 0.6/2; 0.6"
    assert list(fuse([[1, 2], [2, 3]], [0, 1], 3))[:2] == [2, 3]
    assert fuse([[4, -1, -1]], [1], 3) == {4: 1}, "faiss pads with -1"


@given(st.lists(st.permutations(range(8)), min_size=1, max_size=4), st.integers(1, 8))
def test_fused_rankings_hold_each_item_once_and_the_best_first(rankings: list[list[int]], n: int) -> None:
    fused = fuse(rankings, [1.0] * len(rankings), n)
    assert len(fused) == n and list(fused.values()) == sorted(fused.values(), reverse=True)
    if all(ranking == rankings[0] for ranking in rankings):
        assert list(fused) == rankings[0][:n]


@given(st.integers(0, 50), st.floats(0, 1))
def test_re_ranking_starts_with_the_best_and_loses_nothing(seed: int, keep: float) -> None:
    vectors = units(30, seed=seed)
    cosines = (vectors @ units(1, seed=seed + 1)[0]).tolist()
    scores = {place: cosines[place] for place in np.argsort(cosines)[:9:-1].tolist()}
    chosen = diversify(scores, vectors, keep)
    assert sorted(chosen) == sorted(scores) and (keep == 0 or chosen[0] == next(iter(scores)))
    assert [place for place in scores if place in chosen[10:]] == chosen[10:], "only the first ten are chosen anew"
    assert diversify(scores, vectors, 1.0) == list(scores)


def test_re_ranking_makes_lists_more_diverse() -> None:
    vectors = np.repeat(units(20), 5, axis=0)  # every item five times
    search = Search([Space(hashed, vectors)])
    plain, thinned = (search.rank([{"a": 1.0}], 60, keep)[0] for keep in (1.0, 0.7))
    diverse = search.rank_by_mmr([{"a": 1.0}], 60)[0]
    assert set(plain) == set(thinned) == set(diverse)
    assert search.rank([{"a": 1.0}], 5, 0.7)[0] == thinned[:5], "a short list is the beginning of a long one"
    spreads = [study.spread(vectors, found[:10]) for found in (plain, thinned, diverse)]
    assert spreads[0] < min(spreads[1:])


def test_the_more_diversity_the_farther_prompts_may_be_and_the_less_the_intent_counts(smoke: dict) -> None:
    known = {"koi": (1, 0), "carp": (0.8, 0.6), "shop": (0.28, 0.96), "sale": (-0.6, 0.8)}
    embed = lambda texts: np.array([known[text] for text in texts], dtype=np.float32)  # noqa: E731
    settings = resolve(SearchSettings, smoke | {"search_command": ["diversity 0.3"], "raw_weight": 2.0})
    finder = PromptSearch(Search([Space(embed, units(40))]), Echo(), settings)
    prompts = ["carp", "shop", "sale"]
    for diversity, kept, own in ((0.0, 0, 1.0), (0.5, 1, 1.0), (0.75, 2, 0.5), (1.0, 2, 0.0), (None, 1, 1.4)):
        floor, weight, keep = finder.weights_at(diversity)
        [query] = finder.queries(["koi"], [prompts], floor, weight)
        assert query == pytest.approx(dict.fromkeys(prompts[:kept], 1 / 3) | {"koi": own})
        assert keep == pytest.approx(1 - NOVELTY * (0.3 if diversity is None else diversity))
    assert finder.queries(["koi"], [[]], 0.0, 0.0) == [{"koi": 1.0}], "an intent without prompts is searched alone"
    free = PromptSearch(finder.search, Echo(), resolve(SearchSettings, smoke | {"search_command": []}))
    assert free.weights_at() == free.weights_at(0.5)


def test_tasks_take_turns_and_share_the_prompts() -> None:
    commands = [Command("text_to_image"), Command("related_search")]
    written = write_prompts(Echo(), ["koi", "fox"], commands, 3, seed=0)
    assert written[1] == ["fox text_to_image 0", "fox related_search 0", "fox text_to_image 1"]


def test_the_whole_path_asks_as_the_settings_say(smoke: dict) -> None:
    values = {"search_prompts": 2, "search_tasks": ["text_to_image"], "search_command": ["length 7", "relevance 0.9"]}
    writer, settings = Echo(), resolve(SearchSettings, smoke | values)
    finder = PromptSearch(Search([Space(hashed, units(40))]), writer, settings)
    ranked, prompts = finder.find(["koi"], 5, diversity=0.2, relevance=None)
    assert writer.asked == [("koi", Command("text_to_image", length=7, diversity=0.2))]
    assert len(ranked[0]) == 5 and len(prompts[0]) == 2
    assert ranked == finder.rank(["koi"], prompts, 5, 0.2), "diversity sets the command and the weights"
    floor, own, keep = finder.weights_at(0.2)
    assert ranked == finder.search.rank(finder.queries(["koi"], prompts, floor, own), 5, keep)


def test_metrics_are_those_of_their_definitions() -> None:
    ids, vectors = [f"i{k}" for k in range(60)], units(60)
    judged = [Judged("koi", "short", {"i1": 3, "i4": 1, "i50": 1}), Judged("fox", "short", {"i59": 1})]
    row = study.measure([list(range(55))] * 2, judged, ids, vectors).iloc[0]
    gain, ideal = 3 / math.log2(3) + 1 / math.log2(6), 3 + 1 / math.log2(3) + 1 / math.log2(4)
    assert row.ndcg_10 == pytest.approx(gain / ideal)
    assert (row.recall_10, row.recall_50, row.mrr, row.null) == pytest.approx((2 / 3, 2 / 3, 1 / 2, 0))
    pairs = [1 - vectors[a] @ vectors[b] for a in range(10) for b in range(a)]
    assert row.diversity == pytest.approx(np.mean(pairs), abs=1e-5)
    assert study.measure([list(range(55))] * 2, judged, ids, vectors).null.tolist() == [0, 1]


def test_what_is_shown_and_how_new_it_is() -> None:
    assert study.coverage([[0, 1], [1, 2]], 10) == 0.3
    often, seldom = study.novelty([[0], [1]], np.array([6, 0]))
    assert (often, seldom) == pytest.approx((-math.log2(7 / 8), 3))


def test_intents_without_judgements_have_a_diversity_only(smoke: dict) -> None:
    table = study.measure([[0, 1]], [Judged("koi", "unjudged", {})], ["a", "b"], units(2)).assign(system="raw")
    found = study.summary(table, study.METRICS, resolve(SearchSettings, smoke))
    assert set(found["all"]["raw"]) == {"diversity"}


def test_gains_are_differences_of_the_same_intent(smoke: dict) -> None:
    ids, vectors = ["a", "b"], units(2)
    judged = [Judged("koi", "short", {"a": 1}), Judged("fox", "short", {"b": 1})]
    tables = [
        study.measure(ranked, judged, ids, vectors).assign(system=system)
        for system, ranked in {"raw": [[1, 0], [0, 1]], "student": [[0, 1], [1, 0]]}.items()
    ]
    found = study.gains(pd.concat(tables), ["mrr"], "raw", resolve(SearchSettings, smoke))
    assert found["all"] == {"student": {"mrr": {"mean": 0.5, "low": 0.5, "high": 0.5}}}
