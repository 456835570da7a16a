"""Retrieval: what a person typed and what the student wrote find items together, ranked and thinned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas

from udrl_utils.commands import Command
from udrl_utils.engine import Engine
from udrl_utils.search.catalogue import texts_of
from udrl_utils.settings import SearchSettings, extra

if TYPE_CHECKING:
    import numpy
EXACT = 200_000  # items up to which every one is looked at
DEPTH = 200  # items of each ranking that are fused
PAGE, CHOICE = 10, 50  # items that a person sees at first, and best ones that they are chosen from
# Of reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009). With 60, as published, what many texts find is
# first, which lies between them; with 0 the first find of each text is, and lists differ as much as prompts do.
RANK_OFFSET = 0
# What being unlike the other items of the first page weighs beside the fused score, when all diversity is asked for.
UNLIKENESS = 0.15


class Index:
    """Nearest items by cosine: exact for up to EXACT items, in cells of neighbours (faiss) beyond.

    vectors: unit vectors, shape (items, width), float32. Raises: SettingsError without faiss where it is needed.
    """

    def __init__(self, vectors: numpy.ndarray, exact: int = EXACT):
        self.vectors, self.cells = vectors, None
        if len(vectors) > exact:
            self.cells = self._cells(vectors)

    @staticmethod
    def _cells(vectors: numpy.ndarray) -> Any:
        with extra("search", f"a catalogue of {len(vectors)} items"):
            import faiss
        count = int(2 * len(vectors) ** 0.5)
        cells = faiss.index_factory(vectors.shape[1], f"IVF{count},Flat", faiss.METRIC_INNER_PRODUCT)
        cells.train(vectors)
        cells.add(vectors)
        cells.nprobe = max(1, count // 10)
        return cells

    def nearest(self, queries: numpy.ndarray, k: int) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Cosines and places of the k nearest items of each query, best first, each of shape (queries, k)."""
        k = min(k, len(self.vectors))
        if self.cells is not None:
            return self.cells.search(np.ascontiguousarray(queries), k)
        cosines = queries @ self.vectors.T
        places = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
        found = np.take_along_axis(cosines, places, axis=1)
        order = np.argsort(-found, axis=1, kind="stable")
        return np.take_along_axis(found, order, axis=1), np.take_along_axis(places, order, axis=1)


@dataclass(frozen=True)
class Space:
    """Items and texts as vectors of one space: words by a sentence encoder, or pictures by a CLIP-class model."""

    embed: Callable[[Sequence[str]], numpy.ndarray]
    index: Index


def fuse(rankings: Sequence[Sequence[int]], weights: Sequence[float], n: int) -> dict[int, float]:
    """The best n items, best first, with their summed weight / (RANK_OFFSET + rank) over the rankings."""
    scores: dict[int, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for rank, place in enumerate(ranking, 1):
            if place >= 0:  # faiss fills up with -1
                scores[int(place)] = scores.get(int(place), 0.0) + weight / (RANK_OFFSET + rank)
    return dict(sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:n])


def diversify(scores: dict[int, float], vectors: numpy.ndarray, keep: float) -> list[int]:
    """Items with the first PAGE chosen anew out of the best CHOICE, by maximal marginal relevance (Carbonell and
    Goldstein, SIGIR 1998): each the one with the largest keep * score - (1 - keep) * largest cosine to those chosen.

    Scores are given best first; `vectors`: unit vectors of all items.
    """
    places = list(scores)
    values = np.array([scores[place] for place in places[:CHOICE]])
    own, left, nearest, page = vectors[places[:CHOICE]], np.ones(len(values), dtype=bool), np.zeros(len(values)), []
    for _ in range(min(PAGE, len(values))):
        best = int(np.where(left, keep * values - (1 - keep) * nearest, -np.inf).argmax())
        left[best] = False
        nearest = np.maximum(nearest, own @ own[best]) if page else own @ own[best]
        page.append(places[best])
    return page + [place for place in places if place not in page]


class Search:
    """Ranks the items of a catalogue for queries: texts with weights. Every space is searched with every text."""

    def __init__(self, spaces: Sequence[Space]):
        self.spaces = spaces

    def rank(self, queries: Sequence[dict[str, float]], n: int, keep: float = 1.0) -> list[list[int]]:
        """Places of the n best items per query: the rankings of its texts, fused by their weights.

        keep: share of an item's fused score, next to how unlike the others it is, in the choice of the first PAGE.
        """
        vectors, ranked = self.spaces[0].index.vectors, []
        for scores in self._fused(queries, max(n, CHOICE)):
            best = max(scores.values(), default=1.0)
            shares = {place: score / best for place, score in scores.items()}
            ranked.append(diversify(shares, vectors, keep)[:n])
        return ranked

    def diversified(self, queries: Sequence[dict[str, float]], n: int, keep: float = 0.8) -> list[list[int]]:
        """The n best with their first PAGE chosen anew by cosine to the query and to each other: a baseline."""
        space, ranked = self.spaces[0], []
        for query, scores in zip(queries, self._fused(queries, n), strict=True):
            center, vectors = np.array(list(query.values())) @ space.embed(list(query)), space.index.vectors
            cosines = vectors[list(scores)] @ (center / np.linalg.norm(center))
            ranked.append(diversify(dict(zip(scores, cosines, strict=True)), vectors, keep))
        return ranked

    def _fused(self, queries: Sequence[dict[str, float]], n: int) -> Iterator[dict[int, float]]:
        texts = [text for query in queries for text in query]
        found = [space.index.nearest(space.embed(texts), DEPTH)[1] for space in self.spaces]
        start = 0
        for query in queries:
            rows = slice(start, start + len(query))
            rankings = [ranking for places in found for ranking in places[rows]]
            yield fuse(rankings, list(query.values()) * len(found), n)
            start = rows.stop


def expanded(intent: str, prompts: Sequence[str], near: Sequence[bool], own: float) -> dict[str, float]:
    """A query of an intent, of weight `own`, and its prompts, which share 1; those that are not near lose theirs."""
    kept = {prompt: 1 / len(prompts) for prompt, close in zip(prompts, near, strict=True) if close}
    return {**kept, intent: own if kept else 1.0}


def write_prompts(
    writer: Engine, intents: Sequence[str], commands: Sequence[Command], n: int, seed: int, **sampling: Any
) -> list[list[str]]:
    """n distinct prompts at most per intent, in equal shares under each command, tasks taking turns."""
    share = -(-n // len(commands))
    asked = [(intent, command) for intent in intents for command in commands]
    written = writer.generate(
        [intent for intent, _ in asked], [command for _, command in asked], n=share, seed=seed, **sampling
    )
    turns = [written[k : k + len(commands)] for k in range(0, len(written), len(commands))]
    mixed = [[prompt for together in zip(*sets, strict=True) for prompt in together] for sets in turns]
    return [list(filter(None, dict.fromkeys(prompts[:n]))) for prompts in mixed]


class PromptSearch:
    """The whole path: intent -> commanded prompts -> search with each -> fused items."""

    def __init__(self, search: Search, writer: Engine, settings: SearchSettings):
        self.search, self.writer, self.settings = search, writer, settings

    def commands(self, tasks: Sequence[str] = (), **asked: Any) -> list[Command]:
        """One command per task that was trained; what is not asked for, the settings say. None leaves a reward open."""
        codec, wanted = self.writer.codec, self.settings.asked() | asked
        known = [task for task in tasks or self.settings.search_tasks if task in codec.edges] or list(codec.edges)
        levels = {task: {k: v for k, v in wanted.items() if k in codec.rewards_of(task)} for task in known}
        return [Command(task, **levels[task]) for task in known]

    def write(self, intents: Sequence[str], commands: Sequence[Command], n: int = 0) -> list[list[str]]:
        """n prompts at most per intent, as many as the settings say without n."""
        settings = self.settings
        how = {"guidance": settings.search_guidance} if "guidance" in self.writer.knows else {}
        return write_prompts(self.writer, intents, commands, n or settings.search_prompts, settings.seed, **how)

    def find(self, intents: Sequence[str], n: int = 50, **asked: Any) -> tuple[list[list[int]], list[list[str]]]:
        """Places of the n best items per intent, and the prompts that were written for it."""
        prompts, diversity = self.write(intents, self.commands(**asked)), asked.get("diversity")
        return self.rank(self.queries(intents, prompts, diversity), n, diversity), prompts

    def rank(self, queries: Sequence[dict[str, float]], n: int, diversity: float | None = None) -> list[list[int]]:
        """Places of the n best items per query; the more diversity is asked for, the less alike the first of them."""
        return self.search.rank(queries, n, keep=1 - UNLIKENESS * self.diversity(diversity))

    def queries(
        self, intents: Sequence[str], prompts: Sequence[Sequence[str]], diversity: float | None = None
    ) -> list[dict[str, float]]:
        """Intents and their prompts, weighted. The more diversity is asked for, the further prompts may stray: one is
        searched with while its cosine to the intent is 1 - diversity or more.
        """
        floor, own, queries = 1 - self.diversity(diversity), self.own_weight(diversity), []
        texts = [text for intent, written in zip(intents, prompts, strict=True) for text in (intent, *written)]
        vectors = iter(self.search.spaces[0].embed(texts))  # all at once
        for intent, written in zip(intents, prompts, strict=True):
            center = next(vectors)
            near = [next(vectors) @ center >= floor for _ in written]
            queries.append(expanded(intent, written, near, own))
        return queries

    def own_weight(self, diversity: float | None = None) -> float:
        """Weight of what is searched for itself beside its prompts: the less, the more diversity is asked for."""
        return self.settings.raw_weight * (1 - self.diversity(diversity))

    def diversity(self, asked: float | None = None) -> float:
        """The diversity that is asked for; else what the settings say, and 0.5 where they do not."""
        return self.settings.asked().get("diversity", 0.5) if asked is None else asked


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
