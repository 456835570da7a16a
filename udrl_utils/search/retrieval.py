"""Retrieval: the items of a catalogue ranked by their words (BM25), by vectors, or by both, with a student's prompts.

In go items, a writer of prompts and the search settings; out come places in the catalogue, best first. A query is a
dict {text: weight}, and both retrievers are linear in it: a prompt counts as much as its weight says. Rewrites
of an intent go to BM25, descriptions of what is looked for go to the vectors, and the two rankings are fused. Nothing
here knows which items are relevant.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from wordfreq import zipf_frequency

from udrl_utils.commands import Command
from udrl_utils.encoder import Embed
from udrl_utils.engine import Engine
from udrl_utils.errors import extra
from udrl_utils.rewards import share_kept
from udrl_utils.search.catalogue import texts_of
from udrl_utils.settings import SearchSettings
from udrl_utils.teachers import Journal, Request, Teacher
from udrl_utils.text import distinct, stem, words

DEPTH = 200  # items of a ranked list
PAGE, POOL = 10, 50  # items on the first page, and the best items that the page is chosen from by MMR
FUSION = 60  # added to each rank by reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009)
REWRITES, DESCRIPTIONS, NEXT = "query_rewrite", "text_to_image", "related_search"  # tasks, by what they are for
OPEN = {"length": None, "relevance": None, "diversity": None}  # a command that asks for nothing
Query = dict[str, float]
Prompts = dict[str, list[str]]  # prompts for one intent, by task
Ranked = list[list[int]]  # places in the catalogue, best first, one list per query


class Lexical:
    """BM25 over the stems of the items' texts. Raises: SettingsError without bm25s."""

    def __init__(self, texts: Sequence[str]):
        with extra("search", "a search"):
            import bm25s
        self.index = bm25s.BM25()
        self.index.index([self.tokens(text) for text in texts], show_progress=False)
        self.known: dict[str, int] = self.index.vocab_dict

    @staticmethod
    def tokens(text: str) -> list[str]:
        """Stems of a text's words; the parts of hyphenated words count as words."""
        return [stem(part) for word in words(text) for part in re.split("['’-]", word) if part]

    def nearest(self, queries: Sequence[Query]) -> Ranked:
        """Places of the best items per query; items that hold none of its words are not among them."""
        found = []
        for query in queries:
            gains = [weight * self._scores(list(distinct(self.tokens(text)))) for text, weight in query.items()]
            scores = sum(gains, start=self._scores([]))
            best = np.argsort(-scores, kind="stable")[:DEPTH]
            found.append(best[scores[best] > 0].tolist())
        return found

    def holding(self, text: str) -> int:
        """Number of items that hold every word of the text."""
        held = [self._scores([token]) > 0 for token in distinct(self.tokens(text))]
        return int(np.all(held, axis=0).sum()) if held else 0

    def _scores(self, tokens: list[str]) -> np.ndarray:
        """What the tokens add to the score of each item, shape (items,); 0 where it holds none of them."""
        return self.index.get_scores_from_ids([self.known[token] for token in tokens if token in self.known])


class Space:
    """Items and texts as vectors of one space: words by a sentence encoder, or pictures by a CLIP-class model.

    embed: texts -> unit vectors, shape (texts, width). vectors: unit vectors of the items, (items, width), float32.
    Raises: SettingsError without faiss.
    """

    def __init__(self, embed: Embed, vectors: np.ndarray):
        with extra("search", "a search"):
            import faiss
        self.embed, self.vectors, self.index = embed, vectors, faiss.IndexFlatIP(vectors.shape[1])
        self.index.add(vectors)

    def nearest(self, queries: Sequence[Query]) -> Ranked:
        """Places of the items with the largest cosine to each query's weighted sum of vectors."""
        vectors = iter(self.embed([text for query in queries for text in query]))
        sums = [sum(weight * next(vectors) for weight in query.values()) for query in queries]
        return self.index.search(np.array(sums, dtype=np.float32), min(DEPTH, len(self.vectors)))[1].tolist()


def fuse(rankings: Sequence[Sequence[int]]) -> list[int]:
    """The places with the largest sum of 1 / (FUSION + rank) over the rankings: reciprocal rank fusion."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, place in enumerate(ranking, 1):
            scores[place] = scores.get(place, 0.0) + 1 / (FUSION + rank)
    return sorted(scores, key=lambda place: (-scores[place], place))[:DEPTH]


def diversify(places: Sequence[int], vectors: np.ndarray, keep: float) -> list[int]:
    """Places with the first PAGE chosen again from the best POOL by maximal marginal relevance.

    Each choice has the largest keep * relevance - (1 - keep) * largest cosine to the items chosen so far (Carbonell and
    Goldstein, SIGIR 1998); relevance falls evenly from 1 at the top of the pool. `vectors`: unit vectors of all items.
    """
    pool, chosen = list(places[:POOL]), []
    relevance, cosines = 1 - np.arange(len(pool)) / len(pool), vectors[pool] @ vectors[pool].T
    for _ in range(min(PAGE, len(pool))):
        nearest = cosines[:, chosen].max(1, initial=-1)
        gain = keep * relevance - (1 - keep) * nearest
        gain[chosen] = -np.inf
        chosen.append(int(gain.argmax()))
    page = [pool[k] for k in chosen]
    return page + [place for place in places if place not in page]


class Search:
    """A catalogue with its retrievers: words, and one space or more, the first of which diversity is measured in."""

    def __init__(self, items: pd.DataFrame, spaces: Sequence[Space]):
        self.ids, self.texts = items.id.tolist(), texts_of(items)
        self.words, self.spaces, self.vectors = Lexical(self.texts), list(spaces), spaces[0].vectors

    def rankings(self, lexical: Sequence[Query], dense: Sequence[Query]) -> dict[str, Ranked]:
        """Places by retriever, 'BM25', 'dense' and 'hybrid'; the hybrid fuses BM25 and every space."""
        by_words, by_vectors = self.words.nearest(lexical), [space.nearest(dense) for space in self.spaces]
        fused = map(fuse, zip(by_words, *by_vectors, strict=True))
        return {"BM25": by_words, "dense": by_vectors[0], "hybrid": list(fused)}


def llm_prompts(teacher: Teacher, intents: Sequence[str], n: int, replies: Path) -> list[Prompts]:
    """At most n rewrites and n descriptions per intent by a language model; its replies are kept in a file."""
    texts = teacher.write([Request(t, i, n) for t in (REWRITES, DESCRIPTIONS) for i in intents], Journal(replies))
    pairs = zip(texts[: len(intents)], texts[len(intents) :], strict=True)
    return [{REWRITES: rewrites, DESCRIPTIONS: descriptions} for rewrites, descriptions in pairs]


def expand(own: Query, prompts: Sequence[str], weight: float) -> Query:
    """A query with prompts, which share a weight."""
    return {**{prompt: weight / len(prompts) for prompt in prompts}, **own}


class PromptSearch:
    """The whole path: intent -> prompts under a command -> a query of words and one of vectors -> fused items."""

    def __init__(self, search: Search, writer: Engine, settings: SearchSettings):
        self.search, self.writer, self.settings = search, writer, settings

    def write(
        self, intents: Sequence[str], tasks: Sequence[str] = (REWRITES, DESCRIPTIONS), seed: int = 0, **asked: Any
    ) -> list[Prompts]:
        """Distinct prompts for each intent by task, as far as the writer knows it: search_prompts of each, or fewer.

        Rewards not in `asked` are as in the settings; None leaves a reward open. `seed` is added to theirs.
        """
        settings, codec, wanted = self.settings, self.writer.codec, self.settings.asked() | asked
        known = [task for task in tasks if task in codec.edges]
        commands = [Command(t, **{k: v for k, v in wanted.items() if k in codec.rewards_of(t)}) for t in known]
        texts = [intent for intent in intents for _ in commands]
        how = {"n": settings.search_prompts, "seed": settings.seed + seed}
        written = iter(self.writer.generate(texts, commands * len(intents), **how) if texts else [])
        return [{task: list(distinct(filter(None, next(written)))) for task in known} for _ in intents]

    def queries(self, intents: Sequence[str], prompts: Sequence[Prompts]) -> tuple[list[Query], list[Query]]:
        """Per intent, the query for BM25 with its rewrites and the query for vectors with its descriptions.

        An intent whose words many items hold is searched alone, and so is one without prompts that can be used.
        """
        settings, lexical, dense = self.settings, [], []
        for intent, written in zip(intents, self.usable(intents, prompts), strict=True):
            if self.search.words.holding(intent) >= settings.strong_items:
                written = {}
            lexical.append(expand({intent: 1.0}, written.get(REWRITES, ()), settings.rewrite_weight))
            dense.append(expand({intent: 1.0}, written.get(DESCRIPTIONS, ()), settings.description_weight))
        return lexical, dense

    def usable(self, intents: Sequence[str], prompts: Sequence[Prompts]) -> list[Prompts]:
        """The prompts that stay with their intent: near enough, no word made up, no name or number lost."""
        texts = [*intents, *(prompt for by_task in prompts for written in by_task.values() for prompt in written)]
        vectors = dict(zip(texts, self.search.spaces[0].embed(texts), strict=True))
        near = lambda a, b: vectors[a] @ vectors[b] >= self.settings.prompt_floor  # noqa: E731
        fits = lambda intent, prompt: near(intent, prompt) and self.faithful(intent, prompt)  # noqa: E731
        pairs = zip(intents, prompts, strict=True)
        return [{task: [p for p in ps if fits(intent, p)] for task, ps in own.items()} for intent, own in pairs]

    def faithful(self, intent: str, prompt: str) -> bool:
        """Whether a prompt keeps what it must (`kept`, and unknown words: names), and all its words exist."""
        own, written = set(words(intent)), set(words(prompt))
        names = {word for word in own if not zipf_frequency(word, "en")}
        exists = lambda word: zipf_frequency(word, "en") or stem(word) in self.search.words.known  # noqa: E731
        return names <= written and share_kept(intent, prompt) == 1 and all(map(exists, written - own))

    def rank(self, intents: Sequence[str], prompts: Sequence[Prompts], keep: float = 1.0) -> Ranked:
        """Places per intent by the hybrid of both retrievers; below 1, `keep` re-ranks the first page (`diversify`)."""
        hybrid = self.search.rankings(*self.queries(intents, prompts))["hybrid"]
        return hybrid if keep == 1 else [diversify(row, self.search.vectors, keep) for row in hybrid]

    def find(self, intents: Sequence[str], keep: float = 1.0, **asked: Any) -> tuple[Ranked, list[Prompts]]:
        """Places per intent, best first, and the prompts that were written for it under the command."""
        prompts = self.write(intents, **asked)
        return self.rank(intents, prompts, keep), prompts
