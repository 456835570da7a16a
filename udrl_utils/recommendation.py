"""Recommendation: from items that somebody looked at to next searches, and from those to items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from udrl_utils.catalog import texts_of
from udrl_utils.retrieval import PromptSearch

if TYPE_CHECKING:
    import pandas

Histories = Sequence[Sequence[int]]  # of places in the catalogue


def next_searches(
    finder: PromptSearch, catalog: pandas.DataFrame, histories: Histories, **asked: Any
) -> list[list[str]]:
    """Next searches per history, in equal shares from each of its items, as many as the settings say of prompts."""
    share = max(1, finder.settings.search_prompts // max(map(len, histories)))
    titles = [catalog.title.iloc[place] for history in histories for place in history]
    written = iter(finder.write(titles, finder.commands(["related_search"], **asked), share))
    per_item = [[next(written) for _ in history] for history in histories]
    return [list(dict.fromkeys(text for texts in sets for text in texts)) for sets in per_item]


def queries_of(
    catalog: pandas.DataFrame, histories: Histories, searches: Sequence[Sequence[str]], own: float
) -> list[dict[str, float]]:
    """A query per history: its items' texts, which share the weight `own`, and the next searches, which share 1."""
    texts, queries = texts_of(catalog), []
    for history, written in zip(histories, searches, strict=True):
        each = (own if written else 1.0) / len(history)
        queries.append({**{text: 1 / len(written) for text in written}, **{texts[place]: each for place in history}})
    return queries


def unseen(ranked: Sequence[Sequence[int]], histories: Histories) -> list[list[int]]:
    """Ranked items without those of the history."""
    return [[place for place in row if place not in set(seen)] for row, seen in zip(ranked, histories, strict=True)]
