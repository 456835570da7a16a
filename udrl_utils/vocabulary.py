"""Which words exist: those that were taught, those of an intent, and what is regularly made from them.

In go texts, out come the words of a prompt that nobody has written before. Nothing here knows models or files.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

from udrl_utils.text import words

ENDINGS = ("s", "es", "d", "ed", "ing", "er", "est")


def plain_words(text: str) -> list[str]:
    """Lower-case words of a text; an accent belongs to its letter, and all apostrophes are alike."""
    return words(unicodedata.normalize("NFC", text).replace("’", "'"))


def parts_of(word: str) -> list[str]:
    """What hyphens and apostrophes join: "tea-house's" is tea, house and s."""
    return re.split(r"[-']", word)


def forms(text: str) -> set[str]:
    """Words of a text, and what is joined in them."""
    return {form for word in plain_words(text) for form in (word, *parts_of(word))}


class Vocabulary:
    """Words that a prompt may use: those that were taught, those of a language, and those of its intent."""

    def __init__(self, taught: Iterable[str], language: frozenset[str] = frozenset()):
        """`taught`: intents and prompts that were trained on; `language`: words that exist as they are."""
        self.language = language
        self.taught = {form for text in taught for form in forms(text)} - language

    def non_words(self, intent: str, prompt: str) -> list[str]:
        """The prompt's words that do not exist, in their order.

        A compound or a possessive exists when each of its parts does; so does whatever holds a digit. A word of the
        intent or of the training text that the language lacks may be inflected ("zorblat", "zorblats").
        """
        own = forms(intent)
        return [
            word
            for word in plain_words(prompt)
            if not self._exists(word, own) and not all(self._exists(part, own) for part in parts_of(word))
        ]

    def share(self, intent: str, prompt: str) -> float:
        """Share of the prompt's words that do not exist, 0..1; NaN for a prompt without words."""
        count = len(plain_words(prompt))
        return len(self.non_words(intent, prompt)) / count if count else float("nan")

    def _exists(self, word: str, own: set[str]) -> bool:
        return (
            word in self.language
            or any(form in self.taught or form in own for form in (word, *_uninflected(word)))
            or any(letter.isdigit() for letter in word)
        )


def _uninflected(word: str) -> Iterator[str]:
    """What a regular English inflection may have been made from."""
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) > 3:
            stem = word.removesuffix(ending)
            yield from (stem, stem + "e")
            if stem[-1] == stem[-2]:
                yield stem[:-1]
            if stem[-1] == "i":
                yield stem[:-1] + "y"
