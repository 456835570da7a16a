"""Recommendation: from items that somebody looked at to next searches, and from those to items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from udrl_utils.catalog import texts_of
from udrl_utils.commands import Command
from udrl_utils.retrieval import Search, Writer, write_prompts

if TYPE_CHECKING:
    import pandas

TASK = "related_search"


def next_searches(
    writer: Writer,
    catalog: pandas.DataFrame,
    histories: Sequence[Sequence[int]],
    command: Command,
    n: int,
    seed: int,
    **sampling: Any,
) -> list[list[str]]:
    """n next searches at most per history of places in the catalogue, in equal shares from each of its items."""
    share = max(1, n // max(map(len, histories)))
    titles = [catalog.title.iloc[place] for history in histories for place in history]
    written = iter(write_prompts(writer, titles, [command], share, seed, **sampling))
    per_item = [[next(written) for _ in history] for history in histories]
    return [list(dict.fromkeys(text for texts in sets for text in texts)) for sets in per_item]


def recommend(
    search: Search,
    catalog: pandas.DataFrame,
    histories: Sequence[Sequence[int]],
    searches: Sequence[Sequence[str]],
    n: int,
    raw_weight: float,
    keep: float,
) -> list[list[int]]:
    """Places of the n best items per history, none of which is in it: what is near its items and its next searches."""
    texts = texts_of(catalog)
    queries = []
    for history, written in zip(histories, searches, strict=True):
        own = raw_weight / len(history) if written else 1.0
        queries.append({**{text: 1 / len(written) for text in written}, **{texts[place]: own for place in history}})
    longest = max(map(len, histories))
    ranked = search.rank(queries, n + longest, keep)
    return [[p for p in row if p not in set(seen)][:n] for row, seen in zip(ranked, histories, strict=True)]
