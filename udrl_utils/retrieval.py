"""Search with prompts: an intent is expanded into commanded prompts, each is searched, and the rankings are fused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from udrl_utils.commands import Command, CommandCodec
from udrl_utils.settings import SearchSettings, SettingsError

if TYPE_CHECKING:
    import numpy

EXACT = 200_000  # items up to which every one is looked at
DEPTH = 200  # items of each ranking that are fused
PAGE = 10  # items that a person sees at first
POOL = 50  # items that the first page is chosen from, where it is chosen anew
RANK_OFFSET = 60  # of reciprocal rank fusion, as published (Cormack, Clarke and Buettcher, SIGIR 2009)


class Writer(Protocol):
    """Writes prompts: a Student, or whatever serves one."""

    def generate(self, intents: Sequence[str], command: Any, n: int = 1, seed: int = 0) -> list[list[str]]: ...


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
        try:
            import faiss
        except ImportError:
            raise SettingsError(
                f"a catalogue of {len(vectors)} items needs the search extra: pip install 'udrl_utils[search]'"
            ) from None
        count = int(2 * len(vectors) ** 0.5)
        cells = faiss.index_factory(vectors.shape[1], f"IVF{count},Flat", faiss.METRIC_INNER_PRODUCT)
        cells.train(vectors)
        cells.add(vectors)
        cells.nprobe = max(1, count // 10)
        return cells

    def nearest(self, queries: numpy.ndarray, k: int) -> tuple[numpy.ndarray, numpy.ndarray]:
        """Cosines and places of the k nearest items of each query, best first, each of shape (queries, k)."""
        import numpy as np

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


def fuse(rankings: Sequence[Sequence[int]], weights: Sequence[float], n: int) -> list[int]:
    """Items by their summed weight / (RANK_OFFSET + rank) over the rankings, the best n."""
    scores: dict[int, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for rank, place in enumerate(ranking, 1):
            if place >= 0:  # faiss fills up with -1
                scores[int(place)] = scores.get(int(place), 0.0) + weight / (RANK_OFFSET + rank)
    return sorted(scores, key=lambda place: (-scores[place], place))[:n]


def diversify(
    places: Sequence[int], cosines: Sequence[float], vectors: numpy.ndarray, n: int, keep: float
) -> list[int]:
    """Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998): the best n, each the one with the largest
    keep * cosine to the query - (1 - keep) * largest cosine to those already chosen.
    """
    import numpy as np

    places, cosines = np.asarray(places), np.asarray(cosines)
    own, nearest = vectors[places], np.zeros(len(places))
    left, chosen = np.ones(len(places), dtype=bool), []
    for _ in range(min(n, len(places))):
        best = int(np.where(left, keep * cosines - (1 - keep) * nearest, -np.inf).argmax())
        left[best] = False
        nearest = np.maximum(nearest, own @ own[best]) if chosen else own @ own[best]
        chosen.append(int(places[best]))
    return chosen


class Search:
    """Ranks the items of a catalogue for queries: texts with weights. Every space is searched with every text."""

    def __init__(self, spaces: Sequence[Space]):
        self.spaces = spaces

    def rank(self, queries: Sequence[dict[str, float]], n: int, keep: float = 1.0) -> list[list[int]]:
        """Places of the n best items per query: the rankings of its texts, fused by their weights.

        keep: with less than 1, the first PAGE items are chosen anew among the best POOL, to differ from each other.
        """
        import numpy as np

        texts = [text for query in queries for text in query]
        vectors = [space.embed(texts) for space in self.spaces]
        found = [space.index.nearest(rows, DEPTH)[1] for space, rows in zip(self.spaces, vectors, strict=True)]
        ranked, start = [], 0
        for query in queries:
            rows, weights = slice(start, start + len(query)), list(query.values())
            best = fuse([ranking for places in found for ranking in places[rows]], weights * len(found), max(n, POOL))
            if keep < 1:
                best = self._new_page(best, np.array(weights) @ vectors[0][rows], keep)
            ranked.append(best[:n])
            start = rows.stop
        return ranked

    def _new_page(self, best: list[int], wanted: numpy.ndarray, keep: float) -> list[int]:
        import numpy as np

        vectors = self.spaces[0].index.vectors
        pool = best[:POOL]
        page = diversify(pool, vectors[pool] @ (wanted / np.linalg.norm(wanted)), vectors, PAGE, keep)
        return page + [place for place in best if place not in set(page)]


def expanded(intent: str, prompts: Sequence[str], raw_weight: float) -> dict[str, float]:
    """A query of an intent and its prompts, which share a weight of 1."""
    return {**{prompt: 1 / len(prompts) for prompt in prompts}, intent: raw_weight if prompts else 1.0}


def write_prompts(
    writer: Writer, intents: Sequence[str], commands: Sequence[Command], n: int, seed: int, **sampling: Any
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

    def __init__(self, search: Search, writer: Writer, codec: CommandCodec, settings: SearchSettings):
        self.search, self.writer, self.codec, self.settings = search, writer, codec, settings

    def command(self, task: str, **asked: Any) -> Command:
        """What is asked of a task; what is not named here, the settings say. None leaves a reward open."""
        names = {"length": "search_length", "relevance": "search_relevance", "diversity": "search_diversity"}
        levels = {name: getattr(self.settings, field) for name, field in names.items()} | asked
        return Command(task, **{name: value for name, value in levels.items() if name in self.codec.rewards})

    def commands(self, **asked: Any) -> list[Command]:
        """The same for each task that was trained."""
        return [self.command(task, **asked) for task in self.codec.edges]

    def write(self, intents: Sequence[str], commands: Sequence[Command]) -> list[list[str]]:
        """The prompts of each intent."""
        return write_prompts(self.writer, intents, commands, self.settings.search_prompts, self.settings.seed)

    def find(self, intents: Sequence[str], n: int = 50, **asked: Any) -> tuple[list[list[int]], list[list[str]]]:
        """Places of the n best items per intent, and the prompts that they were found with."""
        prompts = self.write(intents, self.commands(**asked))
        return self.search.rank(self.queries(intents, prompts), n, self.settings.page_keep), prompts

    def queries(self, intents: Sequence[str], prompts: Sequence[Sequence[str]]) -> list[dict[str, float]]:
        """Intents and their prompts, weighted."""
        pairs = zip(intents, prompts, strict=True)
        return [expanded(intent, written, self.settings.raw_weight) for intent, written in pairs]
