"""How well search finds: judged intents, ranking measures with intervals, and what moves the diversity of a list.

In go a PromptSearch, judged intents and item ids; out come tables with one row per system and intent, and their means.
Nothing here knows how items are embedded or shown.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import pandas as pd

from udrl_utils.errors import extra
from udrl_utils.evaluation import interval, written
from udrl_utils.pairs import ask_teacher
from udrl_utils.rewards import read_annotated
from udrl_utils.runs import RunFolder
from udrl_utils.search import drawn
from udrl_utils.search.catalogue import read_judgements
from udrl_utils.search.drawn import Judged
from udrl_utils.search.retrieval import PAGE, PromptSearch, Search, next_searches, queries_of, unseen
from udrl_utils.settings import DistillationSettings, SearchSettings
from udrl_utils.teachers.replies import Request

MEASURES = {"ndcg_cut_10": "ndcg_10", "recall_10": "recall_10", "recall_50": "recall_50", "recip_rank": "mrr"}
METRICS = (*MEASURES.values(), "diversity", "null")
FOUND = 50  # items of a ranked list that are judged
OPEN = {"length": None, "relevance": None, "diversity": None}  # a command that asks for nothing
# The ways in which the diversity lever is moved, and what each shows.
WAYS = {
    "together": "command and weights",
    "command": "command alone",
    "weights": "weights alone",
    "control": "weights alone, prompts without a command",
}
MOVED = ["diversity", "ndcg_10", "recall_50"]  # metrics that the lever is judged by
Ranked = Sequence[Sequence[int]]


def measure(ranked: Ranked, judged: Sequence[Judged], ids: Sequence[str], vectors: np.ndarray) -> pd.DataFrame:
    """One row per intent: MEASURES by trec_eval, diversity and null of the first PAGE items.

    diversity: 1 - mean cosine of two items of the list, 0..2; `vectors`: unit vectors of the items, (items, width).
    null: 1 where none of the first PAGE items is relevant, else 0. Intents without judgements only have a diversity.
    """
    wanted = {str(k): one.grades for k, one in enumerate(judged) if one.grades}
    runs = {str(k): {ids[place]: 1 / rank for rank, place in enumerate(row, 1)} for k, row in enumerate(ranked)}
    found, rows = evaluator(wanted).evaluate(runs), []
    for k, (one, row) in enumerate(zip(judged, ranked, strict=True)):
        values = {name: found.get(str(k), {}).get(measure, math.nan) for measure, name in MEASURES.items()}
        null = float(not any(ids[place] in one.grades for place in row[:PAGE])) if one.grades else math.nan
        of_list = {"diversity": spread(vectors, row[:PAGE]), "null": null}
        rows.append({"intent": one.text, "form": one.form, **values, **of_list})
    return pd.DataFrame(rows)


def evaluator(wanted: dict[str, dict[str, int]]) -> Any:
    """A trec_eval that knows what is relevant, {query: {id: grade}}. Raises: SettingsError without the search extra."""
    with extra("search", "notebook 06"):
        import pytrec_eval
    return pytrec_eval.RelevanceEvaluator(wanted, {"ndcg_cut.10", "recall.10,50", "recip_rank"})


def spread(vectors: np.ndarray, row: Sequence[int]) -> float:
    """1 - mean cosine of two different items of a list; 0 for fewer than two."""
    if len(row) < 2:
        return 0.0
    total = vectors[list(row)].sum(0)
    return float(1 - (total @ total - len(row)) / (len(row) * (len(row) - 1)))


def coverage(ranked: Ranked, items: int) -> float:
    """Share of the catalogue's items that are among the first PAGE of some list."""
    return len({place for row in ranked for place in row[:PAGE]}) / items


def novelty(ranked: Ranked, views: np.ndarray) -> np.ndarray:
    """Mean self-information of the first PAGE items of each list [bits], shape (lists,).

    views: how often each item was looked at, shape (items,). An item's self-information is -log2 of its share of all
    views, one view added to each (Castells, Hurley and Vargas, Recommender Systems Handbook).
    """
    bits = -np.log2((views + 1) / (views + 1).sum())
    return np.array([bits[list(row[:PAGE])].mean() for row in ranked])


def summary(results: pd.DataFrame, names: Sequence[str], settings: SearchSettings) -> dict[str, Any]:
    """Means with 95% intervals: {form or 'all': {system: {metric: {mean, low, high}}}}."""

    def means(rows: pd.DataFrame) -> dict[str, Any]:
        systems = rows.groupby("system", sort=False)
        return {
            system: {name: interval(own[name], settings) for name in names if own[name].notna().all()}
            for system, own in systems
        }

    return {form: means(rows) for form, rows in results.groupby("form", sort=False)} | {"all": means(results)}


def gains(results: pd.DataFrame, names: Sequence[str], base: str, settings: SearchSettings) -> dict[str, Any]:
    """The summary of each system's difference to `base`, intent by intent."""
    tables = {
        system: rows.set_index(["form", "intent"])[list(names)]
        for system, rows in results.groupby("system", sort=False)
    }
    plain = tables.pop(base)
    differences = pd.concat([(rows - plain).assign(system=system) for system, rows in tables.items()])
    return summary(differences.reset_index(), names, settings)


def summary_table(summaries: dict[str, Any], form: str) -> pd.DataFrame:
    """One row per system, means with 95% intervals."""
    return pd.DataFrame(
        {
            system: {name: written(value, ".3f") for name, value in metrics.items()}
            for system, metrics in summaries[form].items()
        }
    ).T


def intents_of(run: RunFolder, settings: SearchSettings, items: pd.DataFrame) -> list[Judged]:
    """Intents to search for, none of which was trained on.

    They come from the drawn collection or from the judgements that the settings name; else they are test intents of
    the run, for which no relevant item is known.
    """
    annotated = read_annotated(run)
    if settings.catalog == "drawn":
        facts, seen = drawn.invent(settings.seed, settings.n_items), annotated[annotated.split == "train"].intent
        return drawn.judged_intents(facts, settings.seed, settings.search_intents, set(seen))
    if settings.judgements:
        return read_judgements(settings.judgements, items)
    test = annotated[annotated.split == "test"].intent.unique()[: 3 * settings.search_intents]
    return [Judged(intent, "unjudged", {}) for intent in test]


def teacher_prompts(run: RunFolder, intents: Sequence[str], tasks: Sequence[str], n: int) -> list[list[str]] | None:
    """At most n prompts per intent by the run's teacher, tasks taking turns; None where it cannot be asked any more."""
    made = run.settings(DistillationSettings)
    if made.pairs or made.teacher == "recorded":
        return None
    share = -(-n // len(tasks))
    requests = [Request(task, intent, share) for intent in intents for task in tasks]
    parsed = ask_teacher(run, requests, run / "06_search" / "_teacher.jsonl")
    sets = [parsed[k : k + len(tasks)] for k in range(0, len(parsed), len(tasks))]
    return [[prompt for turn in zip_longest(*texts) for prompt in turn if prompt][:n] for texts in sets]


def compare(
    finder: PromptSearch, judged: Sequence[Judged], ids: Sequence[str], teacher: Sequence[Sequence[str]] | None
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Metrics per system and intent, and the share of the catalogue that each system's first PAGE items cover."""
    intents = [one.text for one in judged]
    alone = [{intent: 1.0} for intent in intents]
    ranked = {"raw": finder.search.rank(alone, FOUND), "mmr": finder.search.rank_by_mmr(alone, FOUND)}
    if teacher:
        ranked["teacher"] = finder.rank(intents, teacher, FOUND)
    ranked["student_open"] = finder.find(intents, FOUND, **OPEN)[0]
    ranked["student"] = finder.find(intents, FOUND)[0]
    return measured(ranked, judged, ids, finder.search)


def measured(
    ranked: dict[str, Ranked], judged: Sequence[Judged], ids: Sequence[str], search: Search
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Metrics of each system's lists, and the share of the catalogue that their first PAGE items cover."""
    tables = [measure(rows, judged, ids, search.vectors).assign(system=system) for system, rows in ranked.items()]
    covered = {system: coverage(rows, len(ids)) for system, rows in ranked.items()}
    return pd.concat(tables, ignore_index=True), covered


def pull_lever(finder: PromptSearch, judged: Sequence[Judged], ids: Sequence[str], levels: int = 10) -> pd.DataFrame:
    """Metrics per way of WAYS, level of diversity and intent: columns of `measure`, way, level.

    together: the level goes to the student's command and to the weights of the search. command: to the command, with
    the weights of the settings. weights: to the weights, with prompts under the settings' command. control: to the
    weights, with prompts that were written without any command, as by a writer that ignores commands.
    """
    intents, tables = [one.text for one in judged], []
    usual, control = finder.write(intents, finder.commands()), finder.write(intents, finder.commands(**OPEN))
    for level in [(k + 0.5) / levels for k in range(levels)]:
        commanded = finder.write(intents, finder.commands(diversity=level))
        moved = {"together": (commanded, level), "command": (commanded, None)}
        moved |= {"weights": (usual, level), "control": (control, level)}
        for way, (prompts, diversity) in moved.items():
            ranked = finder.rank(intents, prompts, FOUND, diversity)
            tables.append(measure(ranked, judged, ids, finder.search.vectors).assign(way=way, level=level))
    return pd.concat(tables, ignore_index=True)


def rises(curve: pd.DataFrame) -> dict[str, Any]:
    """Mean diversity at each level of one way, and whether it never falls from one level to the next."""
    means = curve.groupby("level").diversity.mean()
    return {"levels": means.to_dict(), "monotonic": bool(means.is_monotonic_increasing)}


def lever_effects(curve: pd.DataFrame, settings: SearchSettings) -> dict[str, Any]:
    """What each way moves from the lowest level to the highest: {way: {levels, monotonic, metric: {mean, low, high}}}.

    The metrics are the changes of diversity and, where intents are judged, of nDCG@10 and recall@50, intent by intent.
    """
    effects, ends = {}, (curve.level.min(), curve.level.max())
    for way, rows in curve.groupby("way", sort=False):
        low, high = (rows[rows.level == end].set_index(["form", "intent"]) for end in ends)
        changes = (high[MOVED] - low[MOVED]).dropna(axis=1)
        effects[way] = rises(rows) | {name: interval(changes[name], settings) for name in changes}
    return effects


def effects_table(effects: dict[str, Any]) -> pd.DataFrame:
    """One row per way of WAYS: how much the lever changes each metric from its lowest to its highest level."""
    rows = {
        WAYS[way]: {name: written(found[name], "+.3f") for name in MOVED if name in found}
        for way, found in effects.items()
    }
    return pd.DataFrame(rows).T


def recommend_for(
    finder: PromptSearch, catalogue: pd.DataFrame, visits: Sequence[Judged], views: np.ndarray
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Metrics per system and visit, novelty among them, and the share of the catalogue that each system covers.

    views: how often each item was looked at, shape (items,).
    """
    places = {name: place for place, name in enumerate(catalogue.id)}
    histories = [[places[name] for name in visit.history] for visit in visits]
    search, own, most = finder.search, finder.weights_at()[1], FOUND + drawn.HISTORY
    alone = queries_of(catalogue, histories, [()] * len(visits), own)
    ranked = {"raw": search.rank(alone, most), "mmr": search.rank_by_mmr(alone, most)}
    for system, asked in (("student_open", OPEN), ("student", {})):
        searches = next_searches(finder, catalogue, histories, **asked)
        ranked[system] = search.rank(queries_of(catalogue, histories, searches, own), most)
    ranked = {system: unseen(rows, histories) for system, rows in ranked.items()}
    table, covered = measured(ranked, visits, list(catalogue.id), search)
    return table.assign(novelty=np.concatenate([novelty(rows, views) for rows in ranked.values()])), covered


def views_of(catalogue: pd.DataFrame, items: list[drawn.Facts], seed: int, visits: int = 1000) -> np.ndarray:
    """How often each item was looked at in `visits` other visits, shape (items,)."""
    counts = Counter(name for visit in drawn.visits(items, seed + 1, visits) for name in visit.history)
    return np.array([counts[name] for name in catalogue.id])


def latencies(finder: PromptSearch, intents: Sequence[str]) -> list[float]:
    """Seconds from an intent to its items, including the writing of prompts, one intent at a time after a warm-up."""
    seconds = []
    for intent in [intents[0], *intents]:
        began = time.perf_counter()
        finder.find([intent], FOUND)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]
