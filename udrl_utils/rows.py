"""The student's training rows: command tokens and intent as the prompt, the teacher's prompt as the completion; and the
other way round, intent and prompt as the prompt, the tokens of its levels as the completion.

Annotated pairs and a codec go in; a `datasets` table with the columns prompt and completion comes out. Which model
is trained on it is not known here.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from udrl_utils.commands import Command, CommandCodec
from udrl_utils.gpt2 import END
from udrl_utils.runs import digest, stamp
from udrl_utils.settings import TrainingSettings
from udrl_utils.text import clean_intent, harmless, share, stem, words

if TYPE_CHECKING:
    from datasets import Dataset

CHUNK = 10_000  # rows that are in memory at once where rows lie on disk
SHARED = 20  # words of a prompt for each that it shares with its intent; longer prompts are swapped in less often


def left_open(pair_id: str, rewards: list[str], settings: TrainingSettings) -> frozenset[str]:
    """Rewards that a pair is trained without: none, all, or some, so that any command may be left open later."""
    if share(f"dropout {pair_id}", settings.seed) >= settings.command_dropout:
        return frozenset()
    kept = int(share(f"kept {pair_id}", settings.seed) * 2 ** len(rewards))
    return frozenset(name for i, name in enumerate(rewards) if not kept >> i & 1)


def command_pairs(
    annotated: pd.DataFrame,
    codec: CommandCodec,
    settings: TrainingSettings,
    tokenizer: Any = None,
    commanded: bool = True,
    reading: bool = False,
    folder: Path | None = None,
) -> Dataset:
    """Prompt/completion rows in TRL's standard form: command tokens, intent, end of prefix -> prompt.

    The tokenizer, if given, lends its pieces to swapped words. commanded=False leaves every command open and
    writes no countdown, for the plain baseline. reading=True adds the `reading_row` of each pair. With a folder, rows
    lie on disk and take no memory; the same rows made again are found there.
    """
    from datasets import Dataset

    names, swapped = codec.rewards, WordSwaps(annotated, settings, tokenizer)
    end = tokenizer.eos_token if tokenizer else END

    def pairs() -> Iterator[dict[str, str]]:
        for start in range(0, len(annotated), CHUNK):
            part = annotated.iloc[start : start + CHUNK]
            opened = [left_open(key, names, settings) if commanded else frozenset(names) for key in part.pair_id]
            commands, bins = codec.encode_achieved(part, opened), codec.bins_of(part).to_dict("records")
            for command, levels, row in zip(commands, bins, part.to_dict("records"), strict=True):
                intent, prompt = swapped(row)
                completion = codec.count_down(prompt, settings.horizon) if commanded else prompt
                yield {"prompt": codec.prefix(command, intent), "completion": completion}
                if reading and (read := reading_row(codec, row, levels, end)):
                    yield read

    if folder is None:
        return Dataset.from_list(list(pairs()))
    vocabulary = tokenizer and tokenizer.get_vocab()
    kind = {"commanded": commanded, "reading": reading}
    now = stamp(settings, rows=annotated, codec=vars(codec), vocabulary=vocabulary, **kind)
    return Dataset.from_generator(pairs, cache_dir=str(folder), fingerprint=digest(now))


def reading_row(codec: CommandCodec, row: dict[str, Any], levels: dict[str, float], end: str) -> dict[str, str] | None:
    """A pair the right way up: the student reads the prompt without a command, and learns the tokens of its levels.

    None for a pair that has no value of a reward. Nothing is swapped: the rewards are those of the words as they are.
    """
    names = codec.levels_of(row["task"])
    if not names or any(levels[name] != levels[name] for name in names):
        return None
    prefix = codec.prefix(codec.encode(Command(row["task"])), clean_intent(row["intent"]))
    read = f"{prefix}{codec.count_down(harmless(row['prompt']), codec.horizon)}{end}"
    return {"prompt": read, "completion": "".join(codec.level_tokens(n)[int(levels[n])] for n in names)}


class WordSwaps:
    """Replaces words that an intent and its prompt share by other words, the same in both.

    What a prompt must keep of its intent is then never a matter of habit: the student has to copy. The new words come
    from other intents, are spliced from two of them, or are put together from pieces of the tokenizer's vocabulary:
    many of those occur in no train text, and a token that was never practised is not copied when a new word needs it.

    A coined word stands in a prompt only where it stands in the intent too: a student learns to copy such words and
    not to coin any. Words that occur in another form as well, such as "dog" beside "dogs", stay as they are. A long
    prompt that shares few words with its intent says in other words what the intent means; swaps would tear the two
    apart, and are rarer there.
    """

    def __init__(self, annotated: pd.DataFrame, settings: TrainingSettings, tokenizer: Any = None):
        found = {word for intent in annotated.intent for word in words(clean_intent(intent))}
        self.known = sorted(word for word in found if len(word) > 3 and word.isalpha())
        self.settings, self.pieces = settings, word_pieces(tokenizer) if tokenizer else None

    def __call__(self, row: dict[str, Any]) -> tuple[str, str]:
        """Intent and prompt of a pair, with or without swaps; the same pair and seed give the same ones."""
        intent, prompt = clean_intent(row["intent"]), harmless(row["prompt"])
        rng = random.Random(f"swap {self.settings.seed} {row['pair_id']}")
        if rng.random() >= self.settings.word_swaps:
            return intent, prompt
        shared = shared_words(intent, prompt)
        chance = 0.5 * min(1, SHARED * len(shared) / len(prompt.split()))
        new = {word: self._other(rng) for word in shared if rng.random() < chance}
        if not new:
            return intent, prompt
        swap = lambda text: re.sub(r"\w+", lambda match: new.get(match[0].lower(), match[0]), text)  # noqa: E731
        return swap(intent), swap(prompt)

    def _other(self, rng: random.Random) -> str:
        if self.pieces and rng.random() < 0.4:
            first, later = self.pieces
            return rng.choice(first) + "".join(rng.choices(later, k=rng.choice((1, 1, 2))))
        word, tail = rng.choice(self.known), rng.choice(self.known)
        return word if rng.random() < 0.5 else word[: rng.randint(2, 4)] + tail[-rng.randint(2, 5) :]


def shared_words(intent: str, prompt: str) -> list[str]:
    """Words of four letters and more that both texts hold, and neither in another form."""
    ours, theirs = set(words(intent)), set(words(prompt))
    forms = Counter(map(stem, ours | theirs))
    return sorted(w for w in ours & theirs if len(w) > 3 and w.isalpha() and forms[stem(w)] == 1)


def word_pieces(tokenizer: Any) -> tuple[list[str], list[str]]:
    """Tokens of lower-case letters: those of 2 letters and more that begin a word, and those that go on with one."""
    tokens = [token for token in tokenizer.get_vocab() if token.isascii() or token[0] in "Ġ▁"]
    first = {token[1:] for token in tokens if token[0] in "Ġ▁" and len(token) > 2}
    return tuple(sorted(t for t in found if t.isalpha() and t.isascii() and t.islower()) for found in (first, tokens))
