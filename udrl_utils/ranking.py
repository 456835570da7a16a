"""How good are ranked items? Metrics of search by trec_eval, what lists hold besides, and systems side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from udrl_utils.collection import Judged
from udrl_utils.errors import extra
from udrl_utils.intervals import interval, written
from udrl_utils.retrieval import PAGE
from udrl_utils.settings import SearchSettings

if TYPE_CHECKING:
    import numpy
    import pandas

MEASURES = {"ndcg_cut_10": "ndcg_10", "recall_10": "recall_10", "recall_50": "recall_50", "recip_rank": "mrr"}
METRICS = (*MEASURES.values(), "diversity", "null")
Ranked = Sequence[Sequence[int]]


def measure(ranked: Ranked, judged: Sequence[Judged], ids: Sequence[str], vectors: numpy.ndarray) -> pandas.DataFrame:
    """One row per intent: MEASURES by trec_eval, and of the first PAGE items their diversity and whether all fail.

    diversity: 1 - mean cosine of two items of the list, over `vectors` (unit vectors of the items), 0..2.
    null: 1 where none of the first PAGE items is relevant, else 0. Intents without judgements have a diversity only.
    """
    import pandas

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
    import numpy as np

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
    import pandas

    tables = {
        system: rows.set_index(["form", "intent"])[list(names)]
        for system, rows in results.groupby("system", sort=False)
    }
    plain = tables.pop(base)
    differences = pandas.concat([(rows - plain).assign(system=system) for system, rows in tables.items()])
    return summary(differences.reset_index(), names, settings)


def summary_table(summaries: dict[str, Any], form: str) -> pandas.DataFrame:
    """One row per system, means with 95% intervals."""
    import pandas

    rows = {
        system: {name: written(value, ".3f") for name, value in metrics.items()}
        for system, metrics in summaries[form].items()
    }
    return pandas.DataFrame(rows).T
