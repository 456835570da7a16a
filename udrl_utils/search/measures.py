"""How well search finds: baselines without a language model, ranking measures, paired tests, and the tuning of weights.

A Search, judged searches and prompts go in, tables come out. Nothing here knows how items are embedded or shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, ttest_rel

from udrl_utils.errors import extra
from udrl_utils.evaluation import interval, written
from udrl_utils.search.catalogue import Judged
from udrl_utils.search.retrieval import PAGE, Prompts, PromptSearch, Query, Ranked, Search, diversify
from udrl_utils.settings import SearchSettings

MEASURES = {"ndcg_cut_10": "ndcg_10", "recall_50": "recall_50", "recip_rank": "mrr"}
PARTLY = {"ndcg_cut_10": "ndcg_10_judged", "bpref": "bpref"}  # where people also said what is not relevant
METRICS = [*MEASURES.values(), *PARTLY.values(), "diversity", "null"]
RETRIEVERS = ("BM25", "dense", "hybrid")
MMR = 0.8  # weight of relevance in the MMR baseline
FEEDBACK = 0.5, 0.3  # weight of pseudo-relevance feedback in BM25 and among vectors
TUNED = ("rewrite_weight", "description_weight", "prompt_floor", "strong_items")
READ, TERMS = (10, 3), 10  # items that feedback reads in BM25 and among vectors; terms that BM25 takes of them


def measure(ranked: Ranked, judged: Sequence[Judged], search: Search) -> pd.DataFrame:
    """One row per search: METRICS of its ranked places, its words ('1', '2', '3+') and whether an item holds them all.

    ndcg_10, recall_50 and mrr count an item that nobody judged as not relevant. Where people graded items 0 as well,
    ndcg_10_judged is that of the condensed list, which leaves unjudged items out (Sakai, SIGIR 2007), and bpref looks
    at judged items only (Buckley and Voorhees, SIGIR 2004); elsewhere both are NaN. diversity: 1 - mean cosine of two
    of the first PAGE items, 0..2. null: 1 where none of them is relevant. Unjudged searches only have a diversity.
    """
    lists, rows = [[search.ids[place] for place in row] for row in ranked], []
    found = trec([one.grades for one in judged], lists)
    condensed = [[name for name in names if name in one.grades] for one, names in zip(judged, lists, strict=True)]
    partly = trec([one.grades if 0 in one.grades.values() else {} for one in judged], condensed)
    for k, one in enumerate(judged):
        length, held = len(one.text.split()), search.words.holding(one.text)
        about = {"words": str(length) if length < 3 else "3+", "held": "words held" if held else "words not held"}
        values = {name: found[k].get(key, np.nan) for key, name in MEASURES.items()}
        values |= {name: partly[k].get(key, np.nan) for key, name in PARTLY.items()}
        null = float(not any(one.grades.get(name) for name in lists[k][:PAGE])) if found[k] else np.nan
        values |= {"diversity": spread(search.vectors, ranked[k][:PAGE]), "null": null}
        rows.append({"intent": one.text, **about, **values})
    return pd.DataFrame(rows)


def trec(grades: Sequence[dict[str, int]], lists: Sequence[Sequence[str]]) -> list[dict[str, float]]:
    """What trec_eval says of each list of ids; {} where nothing is relevant, and 0 where nothing was found."""
    with extra("search", "a search"):
        import pytrec_eval
    wanted = {str(k): one for k, one in enumerate(grades) if any(one.values())}
    runs = {k: {name: 1 / rank for rank, name in enumerate(lists[int(k)], 1)} for k in wanted if lists[int(k)]}
    names = {"ndcg_cut.10", "recall.50", "recip_rank", "bpref"}
    values = pytrec_eval.RelevanceEvaluator(wanted, names).evaluate(runs)
    nothing = dict.fromkeys((*MEASURES, *PARTLY), 0.0)
    return [values.get(str(k), nothing if str(k) in wanted else {}) for k in range(len(grades))]


def spread(vectors: np.ndarray, row: Sequence[int]) -> float:
    """1 - mean cosine of two different items of a list; 0 for fewer than two."""
    total, n = vectors[list(row)].sum(0), len(row)
    return float(1 - (total @ total - n) / (n * (n - 1))) if n > 1 else 0.0


def baselines(search: Search, intents: Sequence[str]) -> dict[str, Ranked]:
    """Ranked places by the systems that need no language model: three retrievers, feedback with each, and MMR.

    Feedback searches again with what the first items hold: BM25 with the terms that most of them hold, after the
    relevance model RM3 (Abdul-Jaleel et al., TREC 2004), and vectors with the mean of the items (Rocchio, 1971).
    """
    alone = [{intent: 1.0} for intent in intents]
    first = search.rankings(alone, alone)
    lexical, dense = [], []
    for intent, by_words, by_vectors in zip(intents, first["BM25"], first["dense"], strict=True):
        held = Counter(t for p in by_words[: READ[0]] for t in dict.fromkeys(search.words.tokens(search.texts[p])))
        share = FEEDBACK[0] * len(search.words.tokens(intent)) / TERMS
        lexical.append({**{term: share for term, _ in held.most_common(TERMS)}, intent: 1.0})
        nearest = [search.texts[place] for place in by_vectors[: READ[1]]]
        dense.append({**{text: FEEDBACK[1] / len(nearest) for text in nearest}, intent: 1.0})
    again = {f"{name} + feedback": rows for name, rows in search.rankings(lexical, dense).items()}
    return first | {"hybrid, MMR": [diversify(row, search.vectors, MMR) for row in first["hybrid"]]} | again


def compare(
    search: Search, judged: Sequence[Judged], writers: dict[str, tuple[list[Query], list[Query]]]
) -> tuple[pd.DataFrame, dict[str, float]]:
    """METRICS per system and search, and the share of the catalogue that each system's first PAGE items cover.

    writers: the queries that `PromptSearch.queries` makes of each writer's prompts; all retrievers are asked with them.
    """
    ranked = baselines(search, [one.text for one in judged])
    for writer, queries in writers.items():
        ranked |= {f"{name} + {writer}": rows for name, rows in search.rankings(*queries).items()}
    shown = {name: {place for row in rows for place in row[:PAGE]} for name, rows in ranked.items()}
    return measured(ranked, judged, search), {name: len(found) / len(search.ids) for name, found in shown.items()}


def measured(ranked: dict[str, Ranked], judged: Sequence[Judged], search: Search) -> pd.DataFrame:
    """METRICS per search of each system's lists."""
    tables = [measure(rows, judged, search).assign(system=system) for system, rows in ranked.items()]
    return pd.concat(tables, ignore_index=True)


def grouped(results: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The results of all searches, of those of one, two or more words, and of those whose words some item holds."""
    return {"all": results} | {name: rows for key in ("words", "held") for name, rows in results.groupby(key)}


def means(results: pd.DataFrame, settings: SearchSettings) -> dict[str, dict[str, dict[str, float]]]:
    """{system: {metric: {mean, low, high}}} with 95% intervals over searches; a metric without values is left out."""
    return {
        system: {name: interval(rows[name].dropna(), settings) for name in METRICS if rows[name].notna().any()}
        for system, rows in results.groupby("system", sort=False)
    }


def gains(results: pd.DataFrame, settings: SearchSettings) -> pd.DataFrame:
    """What each system gains on the plain retriever that it builds on: system, against, metric, mean, low, high, p.

    p: of a paired t-test over searches, corrected for all comparisons of a metric by Benjamini and Hochberg's method.
    """
    tables, rows = {system: own for system, own in results.groupby("system", sort=False)}, []
    for system, metric in product(tables.keys() - set(RETRIEVERS), METRICS[:-1]):
        against = next(name for name in RETRIEVERS if system.startswith(name))
        ours, theirs = (tables[name][metric].dropna().to_numpy() for name in (system, against))
        if len(ours):
            known = len(ours) > 1 and not np.allclose(ours, theirs)  # one search alone proves nothing
            p = float(ttest_rel(ours, theirs).pvalue) if known else 1.0
            found = interval(ours - theirs, settings)
            rows.append({"system": system, "against": against, "metric": metric, **found, "p": p})
    table = pd.DataFrame(rows)
    table["p"] = table.groupby("metric").p.transform(false_discovery_control)
    return table.sort_values(["metric", "system"], ignore_index=True)


def gains_table(gained: pd.DataFrame) -> pd.DataFrame:
    """One row per system: what it gains on which retriever, with 95% intervals and corrected p."""
    rows = gained[gained.metric.isin(("ndcg_10", "recall_50"))]
    texts = [f"{written(row, '+.3f')} p={row['p']:.2f}" for row in rows.to_dict("records")]
    return rows.assign(text=texts).pivot(index=["against", "system"], columns="metric", values="text")


def tune(finder: PromptSearch, judged: Sequence[Judged], prompts: Sequence[Prompts]) -> SearchSettings:
    """The settings with the weights, floor and threshold whose gain in recall@50 is surest, over all three retrievers.

    It counts by the lower end of its 95% interval, and no nDCG@10 may fall. Without such a gain the weights are 0.
    """
    intents, grades = [one.text for one in judged], [one.grades for one in judged]

    def score(settings: SearchSettings) -> tuple[np.ndarray, np.ndarray]:
        ranked = finder.search.rankings(*PromptSearch(finder.search, finder.writer, settings).queries(intents, prompts))
        ids = [[[finder.search.ids[place] for place in row] for row in rows] for rows in ranked.values()]
        found = [pd.DataFrame(trec(grades, rows)) for rows in ids]
        return sum(table.recall_50.to_numpy() for table in found), np.array([t.ndcg_cut_10.mean() for t in found])

    best, surest = finder.settings.model_copy(update={"rewrite_weight": 0.0, "description_weight": 0.0}), 0.0
    recall, accuracy = score(best)
    which = [("rewrite_weight",), ("description_weight",), ("rewrite_weight", "description_weight")]
    for names, weight, floor, strong in product(which, (0.1, 0.3, 1.0), (0.3, 0.5, 0.7), (10, 10**9)):
        changes = {name: weight if name in names else 0.0 for name in which[2]}
        tried = best.model_copy(update={**changes, "prompt_floor": floor, "strong_items": strong})
        gained, reached = score(tried)
        low = (gained - recall).mean() - 1.96 * (gained - recall).std() / len(recall) ** 0.5
        if low > surest + 1e-9 and (reached >= accuracy - 1e-9).all():
            best, surest = tried, low
    return best
