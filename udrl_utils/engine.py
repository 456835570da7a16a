"""Engines write prompts under commands: what every engine shares.

Intents and commands go in, prompts come out. An engine knows the codec and how many tokens fit; the model that computes
the tokens is known only to its subclasses, and whether a prompt obeys its command is not known here at all.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from udrl_utils.commands import Command, CommandCodec, CommandError
from udrl_utils.decoding import Sampling
from udrl_utils.text import (
    clean_intent,
    closed_up,
    count_words,
    degenerate,
    harmless,
    is_empty,
    lower_intent,
    repeats,
    scripts,
    spelled_out,
)
from udrl_utils.vocabulary import Vocabulary
from udrl_utils.word_lists import WordLists

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# A prompt that has not ended after this many tokens per word is cut off. Of 4,184 prompts of real LLMs, 2 need more.
TOKENS_PER_WORD = 4
REDRAWS = 6  # times that a prompt with a fault is drawn again
BROKEN_REDRAWS = 10  # if it is broken, or against the user's word lists


@dataclass(frozen=True)
class Batch:
    """Prefixes that are continued together. `opened` maps each guided row to its prefix without levels."""

    prefixes: list[str]
    opened: dict[int, str]
    words: int  # length of the longest prompt that is commanded


def drawn_again(fault: int, others: int) -> bool:
    """Whether a prompt with a `fault` is drawn again after `others` that were no better."""
    return fault > (others >= REDRAWS) and others < BROKEN_REDRAWS


def seed_of_redraw(seed: int, number: int) -> int:
    """Seed with which prompts are drawn again for the `number`-th time."""
    return random.Random(f"again {seed} {number}").getrandbits(31)


class Engine:
    """Writes prompts for intents under commands. A subclass computes: `_write`, `_stream` and `_chances`."""

    name = ""  # shown to the user
    knows = tuple(vars(Sampling()))  # sampling options that this engine has
    batch_size = 128  # prompts that are written at once
    folder: Path | None = None  # where it was loaded from
    end_token: str  # ends a prompt

    def __init__(self, tokenizer: Tokenizer, codec: CommandCodec, positions: int):
        """`positions`: tokens that the model can hold, prefix and prompt together."""
        self.codec, self.positions, self._tokenizer = codec, positions, tokenizer
        options: dict[str, Any] = {name: value for name, value in codec.sampling.items() if name in self.knows}
        self.sampling = Sampling(**options)
        self._vocabulary = Vocabulary([codec.words]) if codec.words else None

    def best_command(self, task: str) -> Command:
        """The command whose prompts scored best on the validation intents of a task."""
        return self.codec.best_command(task)

    def prefix(self, intent: str, command: Command) -> str:
        """The text that the student continues. An intent longer than half of the context is cut, with a warning."""
        intent, room = clean_intent(intent), self.positions // 2
        # a token of ordinary text has at most 16 characters, so that the rest need not be tokenized
        ids = self._tokenizer.encode(harmless(intent[: 16 * room]), add_special_tokens=False).ids
        if len(ids) > room:
            line = f"the intent has at least {len(ids)} tokens; this student reads the first {room}"
            warnings.warn(line, stacklevel=6)
            intent = self._tokenizer.decode(ids[:room]).strip()
        return self.codec.prefix(self.codec.encode(command), intent)

    def generate(
        self,
        intents: Sequence[str],
        command: Command | Sequence[Command],
        n: int = 1,
        seed: int = 0,
        strict: bool = False,
        batch_size: int | None = None,
        banned: Sequence[str] = (),
        keep: Sequence[str] = (),
        **sampling: float,
    ) -> list[list[str]]:
        """n prompts per intent, under one command for all intents or one command for each.

        Of the candidates for a prompt the nearest to its command is kept, as far as the student can tell, among those
        with the least `fault`. A prompt with a fault is drawn again, until there were REDRAWS others, or BROKEN_REDRAWS
        if it is broken, and replaced by one that is no worse. Emoji without words are read as their names, with a
        warning.

        strict: refuse a command that the train split does not support; otherwise the nearest one is used, with a
        warning.
        batch_size: prompts written at once; by default the engine's own number.
        banned, keep: words or phrases, in any case, that no prompt holds and that each one holds. The student reads
        those to keep with the intent, and draws again; what it still gets wrong is cut out, or added at the end.
        sampling: temperature and other options of `Sampling`; by default those that were saved with the student.

        Returns a list (one per intent) of lists (n) of str. The same seed and arguments give the same prompts.
        Raises: CommandError when a command asks for a reward that the student does not know, an intent is empty, a
        word is both banned and kept, or the engine does not have a sampling option.
        """
        commands = [command] * len(intents) if isinstance(command, Command) else list(command)
        how, wishes = self.sampling_with(seed=seed, **sampling), WordLists(banned, keep)
        commands = self._checked(intents, commands, strict)
        read = [wishes.added_to(spelled_out(intent)) for intent in intents]
        requests = [request for request in zip(read, commands, strict=True) for _ in range(n)]

        def ask(rows: Iterable[int], how: Sampling) -> list[tuple[int, str]]:
            """The fault and the text of a prompt for each of the requests."""
            asked = [requests[row] for row in rows]
            drawn = self._draw(asked, how, batch_size)
            pairs = zip(asked, drawn, strict=True)
            faults = [[self.fault(text, intent, wishes) for text in texts] for (intent, _), texts in pairs]
            chosen = self.nearest(asked, drawn, faults)
            return [(faults[row][k], drawn[row][k]) for row, k in enumerate(chosen)]

        kept, others = ask(range(len(requests)), how), [self.candidates(c, how) - 1 for _, c in requests]
        for number in range(BROKEN_REDRAWS):
            again = [row for row, (fault, _) in enumerate(kept) if drawn_again(fault, others[row] + number)]
            if not again:
                break
            other = replace(how, seed=seed_of_redraw(seed, number), candidates=1)
            for row, found in zip(again, ask(again, other), strict=True):
                if found[0] <= kept[row][0]:
                    kept[row] = found
        mended = [wishes.mended(text) for _, text in kept]
        return [mended[k * n : (k + 1) * n] for k in range(len(intents))]

    def fault(self, prompt: str, intent: str, wishes: WordLists | None = None) -> int:
        """How wrong a prompt is: 2 when it is `degenerate` or against the word lists; 1 when it is its intent, repeats
        words, or has a word that neither the train split nor its intent has; else 0."""
        if degenerate(prompt, intent, self.codec.scripts) or (wishes and not wishes.met_by(prompt)):
            return 2
        if lower_intent(prompt) == lower_intent(intent) or repeats(prompt, intent):
            return 1
        return int(self._vocabulary is not None and bool(self._vocabulary.non_words(intent, prompt)))

    def _draw(self, requests: Sequence[tuple[str, Command]], how: Sampling, batch_size: int | None) -> list[list[str]]:
        """The candidates of each request, an intent and a command, as the model writes them."""
        made = {request: self.prefix(*request) for request in dict.fromkeys(requests)}
        asked, opened = [made[request] for request in requests], self._opened(requests, how)
        longest = [self.longest(command) for _, command in requests]
        # Prompts of similar length share a batch, since it is padded and runs until its last prompt ends.
        order = sorted(range(len(asked)), key=lambda k: (longest[k], len(asked[k])))
        order = [k for k in order for _ in range(self.candidates(requests[k][1], how))]
        count = -(-len(order) // (batch_size or self.batch_size))  # number of batches, of nearly equal size
        parts = [order[len(order) * k // count : len(order) * (k + 1) // count] for k in range(count)]
        batches = (
            Batch([asked[k] for k in p], {i: opened[k] for i, k in enumerate(p) if k in opened}, longest[p[-1]])
            for p in parts
        )
        written: list[list[str]] = [[] for _ in asked]
        for part, texts in zip(parts, self._write(batches, how), strict=True):
            for k, text in zip(part, texts, strict=True):
                written[k].append(text)
        return written

    def candidates(self, command: Command, how: Sampling) -> int:
        """Prompts to draw for each one that is kept: there is a choice where the command asks for something, the
        student can tell levels, and its prompts differ."""
        return how.candidates if command.asked and self.codec.reads and how.temperature else 1

    def nearest(
        self, requests: Sequence[tuple[str, Command]], drawn: Sequence[Sequence[str]], faults: Sequence[Sequence[int]]
    ) -> list[int]:
        """Which candidate of each request to keep: of those with the least fault, the nearest to the command."""
        left = [[k for k, fault in enumerate(each) if fault == min(each)] for each in faults]
        rows = [(row, k) for row, places in enumerate(left) for k in places if len(places) > 1]
        apart = self._apart([requests[row] for row, _ in rows], [drawn[row][k] for row, k in rows])
        best: dict[int, tuple[float, int]] = {}
        for (row, k), far in zip(rows, apart, strict=True):
            best[row] = min(best.get(row, (far, k)), (far, k))
        return [best[row][1] if row in best else places[0] for row, places in enumerate(left)]

    def _apart(self, requests: Sequence[tuple[str, Command]], prompts: Sequence[str]) -> list[float]:
        """Expected squared distance of each prompt from its command, in levels; a word counts as one level bin."""
        codec, asked = self.codec, {name for _, command in requests for name in command.levels}
        found = self.estimate([(intent, c.task) for intent, c in requests], prompts, asked)
        middles = np.array([codec.level_of(k) for k in range(codec.bins)])
        apart = []
        for row, ((_, command), prompt) in enumerate(zip(requests, prompts, strict=True)):
            far = 0.0
            for name, level in command.levels.items():
                place = middles[codec.bin_of_level(command.task, name, level)]
                far += float(found[name][row] @ (middles - place) ** 2)
            if command.length:
                far += ((count_words(prompt) - command.length) / codec.bins) ** 2
            apart.append(far)
        return apart

    def estimate(
        self, requests: Sequence[tuple[str, str]], prompts: Sequence[str], rewards: Iterable[str]
    ) -> dict[str, np.ndarray]:
        """What the student takes the levels of prompts to be, from the prompt, its intent and its task alone.

        `requests` holds (intent, task) of each prompt. Returns the chance of each level, shape (prompts, bins), for
        each of the rewards; NaN where the task does not have it. Raises: CommandError when the student has not learnt
        to tell levels.
        """
        codec, wanted = self.codec, [name for name in self.codec.levels if name in set(rewards)]
        if wanted and not codec.reads:
            raise CommandError("this student has not learnt to tell the levels of a prompt")
        texts = [
            f"{self.prefix(intent, Command(task))}{codec.count_down(harmless(prompt), codec.horizon)}{self.end_token}"
            for (intent, task), prompt in zip(requests, prompts, strict=True)
        ]
        found: dict[str, np.ndarray] = {}
        for name in codec.levels[: codec.levels.index(wanted[-1]) + 1] if wanted else []:
            tokens, rows = codec.level_tokens(name), [k for k, (_, t) in enumerate(requests) if name in codec.edges[t]]
            found[name] = np.full((len(texts), codec.bins), np.nan)
            found[name][rows] = chances = self._chances([texts[k] for k in rows], tokens)
            for k, level in zip(rows, chances.argmax(1), strict=True):  # levels follow each other, as in training
                texts[k] += tokens[level]
        return found

    def stream(
        self, intent: str, command: Command, seed: int = 0, strict: bool = False, **sampling: float
    ) -> Iterator[str]:
        """Pieces of one prompt, the first that is drawn, as they are written; arguments and errors as of `generate`."""
        how = self.sampling_with(seed=seed, **sampling)
        [command] = self._checked([intent], [command], strict)
        batch = Batch([self.prefix(intent, command)], self._opened([(intent, command)], how), self.longest(command))
        return self._stream(batch, how)

    def sampling_with(self, **changes: float) -> Sampling:
        """The student's own sampling with some options changed.

        Raises: CommandError for an option that this engine does not have, unless its value changes nothing.
        """
        neutral = vars(Sampling())
        missing = [name for name, value in changes.items() if name not in self.knows and value != neutral.get(name)]
        if missing:
            given = ", ".join(f"{name}={changes[name]!r}" for name in missing)
            off = [f"{name}={neutral[name]}" for name in missing if name in neutral]
            hint = f"; set {', '.join(off)}" if off else ""
            raise CommandError(f"{given}: not an option of {self.name}, which has {', '.join(self.knows)}{hint}")
        return Sampling(**{**vars(self.sampling), **{n: v for n, v in changes.items() if n in self.knows}})

    def _checked(self, intents: Sequence[str], commands: Sequence[Command], strict: bool) -> list[Command]:
        for intent in intents:
            if is_empty(intent):
                raise CommandError(f"intent={intent!r} is empty: it has no letter, digit or emoji")
            if (read := spelled_out(intent)) != intent:
                warnings.warn(f"intent={intent[:20]!r} has no words: it is read as {read[:60]!r}", stacklevel=3)
        found = {command: self.codec.feasible(command, strict) for command in dict.fromkeys(commands)}
        unread = {script for intent in intents for script in scripts(intent)} - {"LATIN", *self.codec.scripts}
        if unread:
            known = ", ".join(self.codec.scripts)
            warnings.warn(f"{', '.join(sorted(unread))}: this student was trained on intents in {known}", stacklevel=3)
        longest, usual = max(map(count_words, intents), default=0), self.codec.intent_words
        if longest > usual > 0:
            warnings.warn(f"an intent has {longest} words, and this student was trained on up to {usual}", stacklevel=3)
        for note in filter(None, (note for _, note in found.values())):
            warnings.warn(note, stacklevel=3)
        return [found[command][0] for command in commands]

    def _opened(self, requests: Sequence[tuple[str, Command]], how: Sampling) -> dict[int, str]:
        """Prefixes without levels, by row, of the commands that have levels; empty without guidance."""
        return {
            row: self.prefix(intent, Command(command.task, command.length))
            for row, (intent, command) in enumerate(requests)
            if command.levels and how.guidance != 1
        }

    def longest(self, command: Command) -> int:
        """Words that a prompt under a command may have."""
        return command.length or self.codec.longest or 60

    def most(self, prefix_tokens: int, words: int) -> int:
        """Most tokens to write after a prefix for a prompt of `words` words, including its length notes."""
        return min(self.positions - prefix_tokens, TOKENS_PER_WORD * words + 16)

    def decoder(self) -> Callable[[int], str | None]:
        """A function that takes the tokens of one prompt, one after the other, and returns the text that each adds."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=True)
        return lambda token: stream.step(self._tokenizer, token)

    def texts(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Prompts from their tokens."""
        return [closed_up(text) for text in self._tokenizer.decode_batch(ids, skip_special_tokens=True)]

    def _write(self, batches: Iterable[Batch], how: Sampling) -> Iterator[list[str]]:
        """The prompts of each batch, one per prefix."""
        raise NotImplementedError

    def _stream(self, batch: Batch, how: Sampling) -> Iterator[str]:
        """Pieces of the prompt of a batch that holds one prefix."""
        raise NotImplementedError

    def _chances(self, texts: Sequence[str], tokens: Sequence[str]) -> np.ndarray:
        """Chances of `tokens`, of these alone, to follow each text, shape (texts, tokens)."""
        raise NotImplementedError
