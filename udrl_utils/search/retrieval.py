"""Retrieval: an intent and the prompts that a student wrote for it are searched together.

In go items as vectors, a writer of prompts and the search settings; out come ranked places in the catalogue. A query is
a dict {text: weight}. Nothing here knows which items are relevant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from udrl_utils.commands import Command
from udrl_utils.encoder import Embed
from udrl_utils.engine import Engine
from udrl_utils.errors import extra
from udrl_utils.search.catalogue import texts_of
from udrl_utils.settings import SearchSettings

EXACT = 200_000  # items up to which every item is compared; a larger index looks at the nearest tenth of its cells
DEPTH = 200  # items of each ranking that are fused
PAGE, POOL = 10, 50  # items on the first page, and the best items that the page is chosen from
# Weight of novelty on the first page at diversity 1, so that the fused score keeps 0.85: enough to replace an item by a
# less similar one of nearly the same score, too little to pull in items that no text ranks high. Set by hand.
NOVELTY = 0.15
MMR = 0.8  # weight of relevance in the MMR baseline: mild re-ranking, which costs little accuracy. Set by hand.


class Space:
    """Items and texts as vectors of one space: words by a sentence encoder, or pictures by a CLIP-class model.

    embed: texts -> unit vectors, shape (texts, width). vectors: unit vectors of the items, (items, width), float32.
    Raises: SettingsError without faiss.
    """

    def __init__(self, embed: Embed, vectors: np.ndarray, exact: int = EXACT):
        with extra("search", "notebook 06"):
            import faiss
        self.embed, self.vectors = embed, vectors
        cells = int(2 * len(vectors) ** 0.5)
        form = "Flat" if len(vectors) <= exact else f"IVF{cells},Flat"
        self.index = faiss.index_factory(vectors.shape[1], form, faiss.METRIC_INNER_PRODUCT)
        self.index.train(vectors)
        self.index.add(vectors)
        if len(vectors) > exact:
            self.index.nprobe = max(1, cells // 10)

    def nearest(self, texts: Sequence[str], k: int) -> np.ndarray:
        """Places of the k items with the largest cosine to each text, best first, shape (texts, k); -1 for none."""
        return self.index.search(np.ascontiguousarray(self.embed(texts)), min(k, len(self.vectors)))[1]


def fuse(rankings: Sequence[Sequence[int]], weights: Sequence[float], n: int) -> dict[int, float]:
    """The best n items, best first, with the weighted sum of their reciprocal ranks, weight / rank.

    This is the reciprocal rank method of data fusion (Nuray and Can, Information Processing & Management 42(3), 2006),
    with weights. Reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009) adds 60 to every rank, which puts
    items first that many texts rank fairly high. Here the first find of each text comes first, so that lists differ
    as much as prompts do.
    """
    scores: dict[int, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for rank, place in enumerate(ranking, 1):
            if place >= 0:  # faiss pads with -1
                scores[int(place)] = scores.get(int(place), 0.0) + weight / rank
    return dict(sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:n])


def diversify(scores: dict[int, float], vectors: np.ndarray, keep: float) -> list[int]:
    """Places with the first PAGE chosen again from the best POOL by maximal marginal relevance.

    Each choice has the largest keep * score - (1 - keep) * largest cosine to the items chosen so far (Carbonell and
    Goldstein, SIGIR 1998). Scores are given best first; `vectors` are unit vectors of all items, shape (items, width).
    """
    places = list(scores)
    values = np.array([scores[place] for place in places[:POOL]])
    own, left, nearest, page = vectors[places[:POOL]], np.ones(len(values), dtype=bool), np.zeros(len(values)), []
    for _ in range(min(PAGE, len(values))):
        best = int(np.where(left, keep * values - (1 - keep) * nearest, -np.inf).argmax())
        left[best] = False
        nearest = np.maximum(nearest, own @ own[best]) if page else own @ own[best]
        page.append(places[best])
    return page + [place for place in places if place not in page]


class Search:
    """Ranks the items of a catalogue for queries. Every space is searched with every text of a query."""

    def __init__(self, spaces: Sequence[Space]):
        self.spaces = spaces

    @property
    def vectors(self) -> np.ndarray:
        """Unit vectors of the items in the first space, which diversity is measured in, shape (items, width)."""
        return self.spaces[0].vectors

    def rank(self, queries: Sequence[dict[str, float]], n: int, keep: float = 1.0) -> list[list[int]]:
        """Places of the n best items per query: the rankings of its texts, fused by their weights.

        keep: weight of the fused score in the choice of the first PAGE; the rest is the weight of novelty.
        """
        ranked = []
        for scores in self._fused(queries, max(n, POOL)):
            best = max(scores.values(), default=1.0)
            shares = {place: score / best for place, score in scores.items()}
            ranked.append(diversify(shares, self.vectors, keep)[:n])
        return ranked

    def rank_by_mmr(self, queries: Sequence[dict[str, float]], n: int) -> list[list[int]]:
        """A baseline: the n best, their first PAGE chosen again by cosine to the query and to each other."""
        ranked = []
        for query, scores in zip(queries, self._fused(queries, n), strict=True):
            center = np.array(list(query.values())) @ self.spaces[0].embed(list(query))
            cosines = self.vectors[list(scores)] @ (center / np.linalg.norm(center))
            ranked.append(diversify(dict(zip(scores, cosines, strict=True)), self.vectors, MMR))
        return ranked

    def _fused(self, queries: Sequence[dict[str, float]], n: int) -> Iterator[dict[int, float]]:
        texts = [text for query in queries for text in query]
        found = [space.nearest(texts, DEPTH) for space in self.spaces]
        start = 0
        for query in queries:
            rows = slice(start, start + len(query))
            rankings = [ranking for places in found for ranking in places[rows]]
            yield fuse(rankings, list(query.values()) * len(found), n)
            start = rows.stop


def write_prompts(
    writer: Engine, intents: Sequence[str], commands: Sequence[Command], n: int, seed: int, **sampling: Any
) -> list[list[str]]:
    """At most n distinct prompts per intent, in equal shares under each command, commands taking turns."""
    share = -(-n // len(commands))
    asked = [(intent, command) for intent in intents for command in commands]
    written = writer.generate(
        [intent for intent, _ in asked], [command for _, command in asked], n=share, seed=seed, **sampling
    )
    turns = [written[k : k + len(commands)] for k in range(0, len(written), len(commands))]
    mixed = [[prompt for together in zip(*sets, strict=True) for prompt in together] for sets in turns]
    return [list(filter(None, dict.fromkeys(prompts[:n]))) for prompts in mixed]


class PromptSearch:
    """The whole path: intent -> prompts under a command -> one ranking per text -> fused items.

    Diversity acts in two places. The command asks the writer for prompts that differ. The weights of the search,
    `weights_at` below, say how far those prompts count. `find` sets both, the study of notebook 06 sets them apart.
    """

    def __init__(self, search: Search, writer: Engine, settings: SearchSettings):
        self.search, self.writer, self.settings = search, writer, settings

    def commands(self, tasks: Sequence[str] = (), **asked: Any) -> list[Command]:
        """One command per trained task. Rewards not in `asked` are as in the settings; None leaves a reward open."""
        codec, wanted = self.writer.codec, self.settings.asked() | asked
        known = [task for task in tasks or self.settings.search_tasks if task in codec.edges] or list(codec.edges)
        levels = {task: {k: v for k, v in wanted.items() if k in codec.rewards_of(task)} for task in known}
        return [Command(task, **levels[task]) for task in known]

    def write(self, intents: Sequence[str], commands: Sequence[Command], n: int = 0) -> list[list[str]]:
        """At most n prompts per intent; n=0 takes the number from the settings."""
        settings = self.settings
        sampling = {"guidance": settings.search_guidance} if "guidance" in self.writer.knows else {}
        return write_prompts(self.writer, intents, commands, n or settings.search_prompts, settings.seed, **sampling)

    def find(self, intents: Sequence[str], n: int = 50, **asked: Any) -> tuple[list[list[int]], list[list[str]]]:
        """Places of the n best items per intent, and the prompts that were written for it."""
        prompts = self.write(intents, self.commands(**asked))
        return self.rank(intents, prompts, n, asked.get("diversity")), prompts

    def rank(
        self, intents: Sequence[str], prompts: Sequence[Sequence[str]], n: int, diversity: float | None = None
    ) -> list[list[int]]:
        """Places of the n best items per intent, searched with its prompts under the weights at a diversity."""
        floor, own, keep = self.weights_at(diversity)
        return self.search.rank(self.queries(intents, prompts, floor, own), n, keep)

    def weights_at(self, diversity: float | None = None) -> tuple[float, float, float]:
        """(floor, own, keep) at a diversity of 0 to 1; None: that of the settings, and 0.5 where they ask for none.

        floor: 1 - diversity, the cosine to the intent below which a prompt is dropped.
        own: raw_weight * (1 - diversity), the weight of the intent, where its prompts share 1. With raw_weight 3.5 and
        the presets' diversity of 0.7 that is 1.05: the intent counts about as much as its prompts together.
        keep: 1 - NOVELTY * diversity, the weight of the fused score in the choice of the first page.
        """
        level = self.settings.asked().get("diversity", 0.5) if diversity is None else diversity
        return 1 - level, self.settings.raw_weight * (1 - level), 1 - NOVELTY * level

    def queries(
        self, intents: Sequence[str], prompts: Sequence[Sequence[str]], floor: float, own: float
    ) -> list[dict[str, float]]:
        """A query per intent: the intent with weight `own`, each prompt with 1 / prompts.

        Prompts whose cosine to the intent is below `floor` are dropped with their weight. An intent that has none left
        is searched alone.
        """
        texts = [text for intent, written in zip(intents, prompts, strict=True) for text in (intent, *written)]
        vectors, queries = iter(self.search.spaces[0].embed(texts)), []  # all at once, which is faster
        for intent, written in zip(intents, prompts, strict=True):
            center = next(vectors)
            kept = {prompt: 1 / len(written) for prompt in written if next(vectors) @ center >= floor}
            queries.append({**kept, intent: own if kept else 1.0})
        return queries


Histories = Sequence[Sequence[int]]  # places in the catalogue


def next_searches(finder: PromptSearch, catalogue: pd.DataFrame, histories: Histories, **asked: Any) -> list[list[str]]:
    """Next searches per history, in equal shares from each of its items; search_prompts of them in all."""
    share = max(1, finder.settings.search_prompts // max(map(len, histories)))
    titles = [catalogue.title.iloc[place] for history in histories for place in history]
    written = iter(finder.write(titles, finder.commands(["related_search"], **asked), share))
    per_item = [[next(written) for _ in history] for history in histories]
    return [list(dict.fromkeys(text for texts in sets for text in texts)) for sets in per_item]


def queries_of(
    catalogue: pd.DataFrame, histories: Histories, searches: Sequence[Sequence[str]], own: float
) -> list[dict[str, float]]:
    """A query per history: its items' texts, which share the weight `own`, and the next searches, which share 1."""
    texts, queries = texts_of(catalogue), []
    for history, written in zip(histories, searches, strict=True):
        each = (own if written else 1.0) / len(history)
        queries.append({**{text: 1 / len(written) for text in written}, **{texts[place]: each for place in history}})
    return queries


def unseen(ranked: Sequence[Sequence[int]], histories: Histories) -> list[list[int]]:
    """Ranked items without those of the history."""
    return [[place for place in row if place not in set(seen)] for row, seen in zip(ranked, histories, strict=True)]
