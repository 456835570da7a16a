"""The study of notebook 06: prompts of several writers at search, the diversity lever, recommendation, latency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from udrl_utils import collection, ranking
from udrl_utils.catalog import read_judgements
from udrl_utils.collection import Judged
from udrl_utils.dialogue import Request
from udrl_utils.distillation import ask_teacher
from udrl_utils.latency import timed
from udrl_utils.recommendation import next_searches, queries_of, unseen
from udrl_utils.retrieval import PromptSearch, Search
from udrl_utils.rewards import read_annotated
from udrl_utils.runs import RunFolder
from udrl_utils.settings import DistillationSettings, SearchSettings

if TYPE_CHECKING:
    import numpy
    import pandas

FOUND = 50  # items of a ranked list that are judged
OPEN = {"length": None, "relevance": None, "diversity": None}


def intents_of(run: RunFolder, settings: SearchSettings, items: pandas.DataFrame) -> list[Judged]:
    """Intents to search for, none of which was trained on: of the drawn collection, of the judgements that the settings
    name, or else test intents of the run, to which nothing is known to be relevant.
    """
    annotated = read_annotated(run)
    if settings.catalog == "drawn":
        facts, seen = collection.invent(settings.seed, settings.n_items), annotated[annotated.split == "train"].intent
        return collection.judged_intents(facts, settings.seed, settings.search_intents, set(seen))
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
    ranked: dict[str, ranking.Ranked], judged: Sequence[Judged], ids: Sequence[str], search: Search
) -> tuple[pandas.DataFrame, dict[str, float]]:
    """Metrics of each system's lists, and the share of the catalogue that their first ten items cover."""
    import pandas

    vectors = search.spaces[0].index.vectors
    tables = [ranking.measure(rows, judged, ids, vectors).assign(system=system) for system, rows in ranked.items()]
    covered = {system: ranking.coverage(rows, len(ids)) for system, rows in ranked.items()}
    return pandas.concat(tables, ignore_index=True), covered


def pull_lever(
    finder: PromptSearch, judged: Sequence[Judged], ids: Sequence[str], levels: int = 10
) -> pandas.DataFrame:
    """Metrics per level of the diversity command and intent: what the command moves, all else as the settings say."""
    import pandas

    vectors, tables = finder.search.spaces[0].index.vectors, []
    for level in [(k + 0.5) / levels for k in range(levels)]:
        ranked, _ = finder.find([one.text for one in judged], FOUND, diversity=level)
        tables.append(ranking.measure(ranked, judged, ids, vectors).assign(level=level))
    return pandas.concat(tables, ignore_index=True)


def rises(curve: pandas.DataFrame) -> dict[str, Any]:
    """Mean diversity at each level of the command, and whether it never falls from one to the next."""
    means = curve.groupby("level").diversity.mean()
    return {"levels": means.to_dict(), "monotonic": bool(means.is_monotonic_increasing)}


def recommend_for(
    finder: PromptSearch, catalog: pandas.DataFrame, visits: Sequence[Judged], views: numpy.ndarray
) -> tuple[pandas.DataFrame, dict[str, float]]:
    """Metrics per system and visit, novelty among them, and the share of the catalogue that each system covers."""
    import numpy as np

    places = {name: place for place, name in enumerate(catalog.id)}
    histories = [[places[name] for name in visit.history] for visit in visits]
    search, nothing = finder.search, [()] * len(visits)

    def queries(searches: Sequence[Sequence[str]]) -> list[dict[str, float]]:
        return queries_of(catalog, histories, searches, finder.own_weight())

    most = FOUND + collection.HISTORY
    ranked = {"raw": search.rank(queries(nothing), most), "mmr": search.diversified(queries(nothing), most)}
    for system, asked in (("student_open", OPEN), ("student", {})):
        ranked[system] = search.rank(queries(next_searches(finder, catalog, histories, **asked)), most)
    ranked = {system: unseen(rows, histories) for system, rows in ranked.items()}
    table, covered = measured(ranked, visits, list(catalog.id), finder.search)
    return table.assign(novelty=np.concatenate([ranking.novelty(rows, views) for rows in ranked.values()])), covered


def views_of(catalog: pandas.DataFrame, items: list[collection.Facts], seed: int, visits: int = 1000) -> numpy.ndarray:
    """How often each item of the catalogue was looked at in so many other visits."""
    import numpy as np

    counts = Counter(name for visit in collection.visits(items, seed + 1, visits) for name in visit.history)
    return np.array([counts[name] for name in catalog.id])


def latencies(finder: PromptSearch, intents: Sequence[str]) -> list[float]:
    """Seconds from an intent to its items, prompts written on the way, one intent at a time; the first one warms up."""
    return timed(lambda intent: finder.find([intent], FOUND), [intents[0], *intents])
