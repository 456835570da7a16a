"""Retrievers, fusion and re-ranking; how prompts are searched with; measures, baselines, tests and tuning."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from udrl_utils.cli import app
from udrl_utils.commands import Command, CommandCodec
from udrl_utils.search import measures
from udrl_utils.search.catalogue import Judged, as_table
from udrl_utils.search.retrieval import OPEN, Lexical, PromptSearch, Search, Space, diversify, fuse
from udrl_utils.settings import ROOT, SearchSettings, resolve

TASKS = ("query_rewrite", "text_to_image")
CODEC = CommandCodec(10, 60, {task: {"relevance": [], "diversity": []} for task in TASKS})
TITLES = ["koi pond", "fox den", "pond with a heron", "tea house"]


def units(count: int, width: int = 16, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def letters(texts: list[str]) -> np.ndarray:
    """A vector per text: how often it holds each letter."""
    counts = np.array([[text.count(chr(k)) + 0.01 for k in range(97, 123)] for text in texts], dtype=np.float32)
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


class Echo:
    """Writes the intent and the diversity that it is asked for, and remembers what it was asked."""

    codec = CODEC

    def __init__(self) -> None:
        self.asked: list[tuple[str, Command]] = []

    def generate(self, intents, command, n=1, seed=0):
        self.asked += list(zip(intents, command, strict=True))
        return [[f"{intent} {one.task.split('_')[-1]}"] * n for intent, one in zip(intents, command, strict=True)]


def search_of(titles: list[str]) -> Search:
    table = as_table({"id": f"i{k}", "title": title, "keywords": "", "image": ""} for k, title in enumerate(titles))
    return Search(table, [Space(letters, letters(titles))])


def finder_of(smoke: dict, **values: object) -> PromptSearch:
    return PromptSearch(search_of(TITLES), Echo(), resolve(SearchSettings, smoke | values))


def test_bm25_finds_stems_and_prefers_rare_words() -> None:
    words = Lexical([*TITLES, "wi-fi pond"])
    assert words.nearest([{"foxes": 1.0}, {"gone": 1.0}, {"fi": 1.0}]) == [[1], [], [4]]
    assert words.nearest([{"pond heron": 1.0}])[0][0] == 2
    assert words.nearest([{"koi": 1.0, "fox": 0.5}])[0] == [0, 1], "a text counts by its weight"
    assert [words.holding(text) for text in ("pond", "ponds with herons", "koi heron", "gone", "")] == [3, 1, 0, 0, 0]


def test_a_space_finds_what_sorting_finds() -> None:
    vectors = letters([f"{'a' * k}{'b' * (40 - k)}" for k in range(40)])
    query = {"aab": 1.0, "b": 0.5}
    center = letters(list(query)).T @ list(query.values())
    assert Space(letters, vectors).nearest([query])[0] == np.argsort(-(vectors @ center), kind="stable").tolist()


def test_fusion_prefers_what_several_rankings_hold() -> None:
    assert fuse([[1, 2], [2, 3]]) == [2, 1, 3]
    assert fuse([[], [4, 5]]) == [4, 5]


@given(st.integers(0, 50), st.floats(0.05, 1))
def test_re_ranking_starts_with_the_best_and_loses_nothing(seed: int, keep: float) -> None:
    places = np.random.default_rng(seed).permutation(30).tolist()
    chosen = diversify(places, units(30, seed=seed), keep)
    assert sorted(chosen) == sorted(places) and chosen[0] == places[0]
    assert [place for place in places if place in chosen[10:]] == chosen[10:], "only the first ten are chosen again"
    assert diversify(places, units(30, seed=seed), 1.0) == places
    assert diversify([], units(30), keep) == []


def test_re_ranking_makes_lists_more_diverse() -> None:
    vectors = np.repeat(units(20), 5, axis=0)  # every item five times
    places = list(range(100))
    assert measures.spread(vectors, diversify(places, vectors, 0.5)[:10]) > measures.spread(vectors, places[:10])


def test_rewrites_go_to_bm25_and_descriptions_to_the_vectors(smoke: dict) -> None:
    finder = finder_of(smoke, prompt_floor=-1.0, rewrite_weight=0.2, description_weight=0.6)
    prompts = [{"query_rewrite": ["koi pool", "carp pond"], "text_to_image": ["a calm koi pond"]}, {}]
    lexical, dense = finder.queries(["koi", "tea"], prompts)
    assert lexical == [{"koi": 1.0, "koi pool": 0.1, "carp pond": 0.1}, {"tea": 1.0}]
    assert dense == [{"koi": 1.0, "a calm koi pond": 0.6}, {"tea": 1.0}]


def test_prompts_that_leave_the_intent_weigh_nothing(smoke: dict) -> None:
    finder = finder_of(smoke, prompt_floor=0.8)
    written = ["koi pond", "koi zzyzxq pond", "quiz"]
    assert finder.usable(["koi"], [{"query_rewrite": written}]) == [{"query_rewrite": []}]
    assert finder.usable(["koi pond"], [{"query_rewrite": written}]) == [{"query_rewrite": ["koi pond"]}]
    free = finder_of(smoke, prompt_floor=-1.0)
    kept = free.usable(["zorblat 42"], [{"query_rewrite": ["zorblat 42 case", "zorblat case", "case 42"]}])
    assert kept == [{"query_rewrite": ["zorblat 42 case"]}], "a name and a number are kept"


def test_an_intent_whose_words_many_items_hold_is_searched_alone(smoke: dict) -> None:
    finder = finder_of(smoke, prompt_floor=-1.0, strong_items=2)
    prompts = [{"query_rewrite": ["a pool"], "text_to_image": ["a pool"]}] * 2
    assert finder.queries(["pond", "koi"], prompts)[0] == [{"pond": 1.0}, {"koi": 1.0, "a pool": 0.1}]


def test_the_whole_path_asks_as_the_settings_say(smoke: dict) -> None:
    finder = finder_of(smoke, search_command=["length 7", "relevance 0.9"], prompt_floor=-1.0)
    ranked, prompts = finder.find(["koi"], diversity=0.2, relevance=None)
    assert finder.writer.asked == [("koi", Command(task, length=7, diversity=0.2)) for task in TASKS]
    assert prompts == [{"query_rewrite": ["koi rewrite"], "text_to_image": ["koi image"]}], "each prompt once"
    assert ranked == finder.rank(["koi"], prompts) and ranked[0][0] == 0
    finder.write(["koi"], **OPEN)
    assert finder.writer.asked[-1] == ("koi", Command("text_to_image"))
    assert finder.write(["koi"], ["related_search"]) == [{}], "a task that the student was not trained on"


def test_metrics_are_those_of_their_definitions() -> None:
    search = search_of([f"item {k}" for k in range(60)])
    judged = [Judged("koi", {"i1": 3, "i4": 1, "i50": 1}), Judged("item 59", {"i59": 1}), Judged("a b c", {})]
    table = measures.measure([list(range(55))] * 3, judged, search)
    gain, ideal = 3 / math.log2(3) + 1 / math.log2(6), 3 + 1 / math.log2(3) + 1 / math.log2(4)
    row = table.iloc[0]
    assert row.ndcg_10 == pytest.approx(gain / ideal)
    assert (row.recall_50, row.mrr, row.null) == pytest.approx((2 / 3, 1 / 2, 0))
    pairs = [1 - search.vectors[a] @ search.vectors[b] for a in range(10) for b in range(a)]
    assert row.diversity == pytest.approx(np.mean(pairs), abs=1e-5)
    assert table.null.tolist()[:2] == [0, 1] and table.words.tolist() == ["1", "2", "3+"]
    assert table.held.tolist() == ["words not held", "words held", "words not held"]
    unjudged = table.iloc[2][measures.METRICS]
    assert unjudged.dropna().index.tolist() == ["diversity"], "nothing else is known of an unjudged search"


def test_unjudged_items_are_left_out_where_people_said_what_is_not_relevant() -> None:
    search = search_of([f"item {k}" for k in range(9)])
    judged = [Judged("koi", {"i5": 2, "i6": 0}), Judged("koi", {"i5": 2})]
    table = measures.measure([[0, 1, 6, 5], [0, 1, 6, 5]], judged, search)
    assert table.ndcg_10_judged[0] == pytest.approx(1 / math.log2(3)), "i6 and i5 are the condensed list"
    assert table.bpref[0] == 0 and table.ndcg_10_judged.isna()[1] and table.bpref.isna()[1]
    assert table.ndcg_10[0] == pytest.approx(1 / math.log2(5))
    assert measures.measure([[6]], judged[:1], search).null[0] == 1, "grade 0 is not relevant"
    assert measures.measure([[]], judged[:1], search).ndcg_10[0] == 0, "nothing was found"


JUDGED = [Judged("koi", {"i0": 3}), Judged("herons", {"i2": 1}), Judged("lair", {"i1": 1})]


def test_every_system_is_measured_on_every_search_and_its_gain_is_tested(smoke: dict) -> None:
    finder = finder_of(smoke)
    better = [[{one.text: 1.0, "fox den": 1.0} for one in JUDGED]] * 2
    results, covered = measures.compare(finder.search, JUDGED, {"student": tuple(better)})
    systems = {"BM25", "dense", "hybrid", "hybrid, MMR"}
    systems |= {f"{name} + {what}" for name in measures.RETRIEVERS for what in ("feedback", "student")}
    assert set(results.system) == systems == covered.keys() and len(results) == 3 * len(systems)
    assert set(measures.grouped(results)) == {"all", "1", "words held", "words not held"}
    gained = measures.gains(results, finder.settings).set_index(["system", "metric"])
    row = gained.loc["BM25 + student", "recall_50"]
    assert (row.against, row["mean"]) == ("BM25", pytest.approx(1 / 3)) and 0 <= row.p <= 1
    assert gained.p.between(0, 1).all() and "BM25 + student" in measures.gains_table(gained.reset_index()).to_string()


def test_tuning_takes_what_surely_helps_and_nothing_else(smoke: dict) -> None:
    finder, helpful = finder_of(smoke), {"query_rewrite": ["lair fox den"]}
    assert measures.tune(finder, [JUDGED[2]] * 5, [helpful] * 5).rewrite_weight > 0
    assert measures.tune(finder, JUDGED, [{}, {}, helpful]).rewrite_weight == 0, "one search in three is no evidence"


def test_search_eval_measures_a_catalogue_and_tunes_on_another(tmp_path: Path) -> None:
    data = next((data for data in (up / "shared" / "data" for up in ROOT.parents) if data.is_dir()), None)
    if data is None:
        pytest.skip("no shared/data with judged searches beside the checkout")
    shop, emoji = ([str(data / name / f"{part}.csv") for part in ("catalog", "judgements")]
                   for name in ("chorus_ecommerce", "emoji_search"))  # fmt: skip
    few = ["--set", "search_intents=4", "--set", "search_prompts=1", "--set", "n_items=150"]
    where = ["--catalog", shop[0], "--judgements", shop[1], "--tune-on", *emoji, "--out", str(tmp_path)]
    done = CliRunner().invoke(app, ["search-eval", *where, *few])
    assert done.exit_code == 0, done.output
    assert "BM25 + student" in done.output and "4 searches, all" in done.output
    assert set(pd.read_parquet(tmp_path / "results.parquet").system) > {"BM25", "hybrid + student"}
