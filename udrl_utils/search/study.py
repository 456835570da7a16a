"""How well search finds: judged intents, ranking measures with intervals, and what the diversity command moves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas

from udrl_utils.deploy.latency import timed
from udrl_utils.evaluation import interval, written
from udrl_utils.pairs import ask_teacher
from udrl_utils.rewards import read_annotated
from udrl_utils.runs import RunFolder
from udrl_utils.search import drawn
from udrl_utils.search.catalogue import read_judgements
from udrl_utils.search.drawn import Judged
from udrl_utils.search.retrieval import PAGE, PromptSearch, Search, next_searches, queries_of, unseen
from udrl_utils.settings import DistillationSettings, SearchSettings, extra
from udrl_utils.teachers.replies import Request

if TYPE_CHECKING:
    import numpy
MEASURES = {"ndcg_cut_10": "ndcg_10", "recall_10": "recall_10", "recall_50": "recall_50", "recip_rank": "mrr"}
METRICS = (*MEASURES.values(), "diversity", "null")
Ranked = Sequence[Sequence[int]]


def measure(ranked: Ranked, judged: Sequence[Judged], ids: Sequence[str], vectors: numpy.ndarray) -> pandas.DataFrame:
    """One row per intent: MEASURES by trec_eval, and of the first PAGE items their diversity and whether all fail.

    diversity: 1 - mean cosine of two items of the list, over `vectors` (unit vectors of the items), 0..2.
    null: 1 where none of the first PAGE items is relevant, else 0. Intents without judgements have a diversity only.
    """
    wanted = {str(k): one.grades for k, one in enumerate(judged) if one.grades}
    runs = {str(k): {ids[place]: 1 / rank for rank, place in enumerate(row, 1)} for k, row in enumerate(ranked)}
    found = evaluator(wanted).evaluate(runs)
    rows = []
    for k, (one, row) in enumerate(zip(judged, ranked, strict=True)):
        values = {name: found.get(str(k), {}).get(measure, math.nan) for measure, name in MEASURES.items()}
        null = float(not any(ids[place] in one.grades for place in row[:PAGE])) if one.grades else math.nan
        rows.append(
            {"intent": one.text, "form": one.form, **values, "diversity": spread(vectors, row[:PAGE]), "null": null}
        )
    return pandas.DataFrame(rows)


def evaluator(wanted: dict[str, dict[str, int]]) -> Any:
    """A trec_eval that knows what is relevant. Raises: SettingsError without the search extra."""
    with extra("search", "notebook 06"):
        import pytrec_eval
    return pytrec_eval.RelevanceEvaluator(wanted, {"ndcg_cut.10", "recall.10,50", "recip_rank"})


def spread(vectors: numpy.ndarray, row: Sequence[int]) -> float:
    """1 - mean cosine of two different items of a list; 0 for fewer than two."""
    if len(row) < 2:
        return 0.0
    total = vectors[list(row)].sum(0)
    return float(1 - (total @ total - len(row)) / (len(row) * (len(row) - 1)))


def coverage(ranked: Ranked, items: int) -> float:
    """Share of the catalogue that some list shows among its first PAGE."""
    return len({place for row in ranked for place in row[:PAGE]}) / items


def novelty(ranked: Ranked, views: numpy.ndarray) -> numpy.ndarray:
    """Mean self-information of the first PAGE items of each list [bits]; views: how often each item was looked at.

    -log2 of the share of views, one added to each (Castells, Hurley and Vargas, Recommender Systems Handbook).
    """
    bits = -np.log2((views + 1) / (views + 1).sum())
    return np.array([bits[list(row[:PAGE])].mean() for row in ranked])


def summary(results: pandas.DataFrame, names: Sequence[str], settings: SearchSettings) -> dict[str, Any]:
    """Means with 95% intervals: {form or 'all': {system: {metric: {mean, low, high}}}}."""
    forms = [*results.form.unique(), "all"]
    return {
        form: {
            system: {name: interval(rows[name], settings) for name in names if rows[name].notna().all()}
            for system, rows in (results if form == "all" else results[results.form == form]).groupby(
                "system", sort=False
            )
        }
        for form in forms
    }


def gains(results: pandas.DataFrame, names: Sequence[str], base: str, settings: SearchSettings) -> dict[str, Any]:
    """The same for each system's difference to `base`, intents in pairs."""
    tables = {
        system: rows.set_index(["form", "intent"])[list(names)]
        for system, rows in results.groupby("system", sort=False)
    }
    plain = tables.pop(base)
    differences = pandas.concat([(rows - plain).assign(system=system) for system, rows in tables.items()])
    return summary(differences.reset_index(), names, settings)


def summary_table(summaries: dict[str, Any], form: str) -> pandas.DataFrame:
    """One row per system, means with 95% intervals."""
    rows = {
        system: {name: written(value, ".3f") for name, value in metrics.items()}
        for system, metrics in summaries[form].items()
    }
    return pandas.DataFrame(rows).T


FOUND = 50  # items of a ranked list that are judged
OPEN = {"length": None, "relevance": None, "diversity": None}


def intents_of(run: RunFolder, settings: SearchSettings, items: pandas.DataFrame) -> list[Judged]:
    """Intents to search for, none of which was trained on: of the drawn collection, of the judgements that the settings
    name, or else test intents of the run, to which nothing is known to be relevant.
    """
    annotated = read_annotated(run)
    if settings.catalog == "drawn":
        facts, seen = drawn.invent(settings.seed, settings.n_items), annotated[annotated.split == "train"].intent
        return drawn.judged_intents(facts, settings.seed, settings.search_intents, set(seen))
    if settings.judgements:
        return read_judgements(settings.judgements, items)
    unseen = annotated[annotated.split == "test"].intent.unique()[: 3 * settings.search_intents]
    return [Judged(intent, "unjudged", {}) for intent in unseen]


def teacher_prompts(run: RunFolder, intents: Sequence[str], tasks: Sequence[str], n: int) -> list[list[str]] | None:
    """n prompts at most per intent by the run's teacher, tasks taking turns; None where it answers no more."""
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
) -> tuple[pandas.DataFrame, dict[str, float]]:
    """Metrics per system and intent, and the share of the catalogue that each system's first ten items cover."""
    intents, search = [one.text for one in judged], finder.search
    alone = [{intent: 1.0} for intent in intents]
    ranked = {"raw": search.rank(alone, FOUND), "mmr": search.diversified(alone, FOUND)}
    if teacher:
        ranked["teacher"] = finder.rank(finder.queries(intents, teacher), FOUND)
    ranked["student_open"] = finder.find(intents, FOUND, **OPEN)[0]
    ranked["student"] = finder.find(intents, FOUND)[0]
    return measured(ranked, judged, ids, search)


def measured(
    ranked: dict[str, Ranked], judged: Sequence[Judged], ids: Sequence[str], search: Search
) -> tuple[pandas.DataFrame, dict[str, float]]:
    """Metrics of each system's lists, and the share of the catalogue that their first ten items cover."""
    vectors = search.spaces[0].index.vectors
    tables = [measure(rows, judged, ids, vectors).assign(system=system) for system, rows in ranked.items()]
    covered = {system: coverage(rows, len(ids)) for system, rows in ranked.items()}
    return pandas.concat(tables, ignore_index=True), covered


def pull_lever(
    finder: PromptSearch, judged: Sequence[Judged], ids: Sequence[str], levels: int = 10
) -> pandas.DataFrame:
    """Metrics per level of the diversity command and intent: what the command moves, all else as the settings say."""
    vectors, tables = finder.search.spaces[0].index.vectors, []
    for level in [(k + 0.5) / levels for k in range(levels)]:
        ranked, _ = finder.find([one.text for one in judged], FOUND, diversity=level)
        tables.append(measure(ranked, judged, ids, vectors).assign(level=level))
    return pandas.concat(tables, ignore_index=True)


def rises(curve: pandas.DataFrame) -> dict[str, Any]:
    """Mean diversity at each level of the command, and whether it never falls from one to the next."""
    means = curve.groupby("level").diversity.mean()
    return {"levels": means.to_dict(), "monotonic": bool(means.is_monotonic_increasing)}


def recommend_for(
    finder: PromptSearch, catalog: pandas.DataFrame, visits: Sequence[Judged], views: numpy.ndarray
) -> tuple[pandas.DataFrame, dict[str, float]]:
    """Metrics per system and visit, novelty among them, and the share of the catalogue that each system covers."""
    places = {name: place for place, name in enumerate(catalog.id)}
    histories = [[places[name] for name in visit.history] for visit in visits]
    search, nothing = finder.search, [()] * len(visits)

    def queries(searches: Sequence[Sequence[str]]) -> list[dict[str, float]]:
        return queries_of(catalog, histories, searches, finder.own_weight())

    most = FOUND + drawn.HISTORY
    ranked = {"raw": search.rank(queries(nothing), most), "mmr": search.diversified(queries(nothing), most)}
    for system, asked in (("student_open", OPEN), ("student", {})):
        ranked[system] = search.rank(queries(next_searches(finder, catalog, histories, **asked)), most)
    ranked = {system: unseen(rows, histories) for system, rows in ranked.items()}
    table, covered = measured(ranked, visits, list(catalog.id), finder.search)
    return table.assign(novelty=np.concatenate([novelty(rows, views) for rows in ranked.values()])), covered


def views_of(catalog: pandas.DataFrame, items: list[drawn.Facts], seed: int, visits: int = 1000) -> numpy.ndarray:
    """How often each item of the catalogue was looked at in so many other visits."""
    counts = Counter(name for visit in drawn.visits(items, seed + 1, visits) for name in visit.history)
    return np.array([counts[name] for name in catalog.id])


def latencies(finder: PromptSearch, intents: Sequence[str]) -> list[float]:
    """Seconds from an intent to its items, prompts written on the way, one intent at a time; the first one warms up."""
    return timed(lambda intent: finder.find([intent], FOUND), [intents[0], *intents])
