"""Texts: intents as they are typed, words, scripts, and what is broken.

In go strings, out come strings and numbers. Nothing here knows tasks, files or settings.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from typing import Any

import regex

UNSPACED = r"\p{Han}\p{Hiragana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"  # scripts that put no space between words
PIECE = regex.compile(rf"\s?(?:[^\w\s]*(?=[{UNSPACED}])\X[^\w\s]*|[^\s{UNSPACED}]+)")
GAP = regex.compile(rf"(?<=[{UNSPACED}][^\w\s]*) (?=[^\w\s]*[{UNSPACED}])")
WORD = regex.compile(
    rf"(?=[{UNSPACED}])\X|(?![{UNSPACED}])[\p{{L}}\p{{N}}][^\W_{UNSPACED}]*(?:['’-][^\W_{UNSPACED}]+)*"
)
LOOP = regex.compile(  # a syllable or a letter again and again, or one to five words three times in a row
    r"(\p{L}{3,8})\1{2}|(\p{L}{2})\2{3}|(\p{L})\3{5}|\b(\w+(?:\W+\w+){0,4})(?:\W+\4\b){2}"
)
WORDS_PER_REPEAT = 12  # of 14,536 recorded prompts, 8% say more words again
INVISIBLE = dict.fromkeys(map(ord, "\u200b\u2060\ufeff\u00ad"))  # zero-width spaces, byte order mark, soft hyphen


def clean_intent(text: str) -> str:
    """An intent as it was typed, on one line: case, quotes and punctuation stay, control characters go."""
    text = unicodedata.normalize("NFC", text.translate(INVISIBLE))
    return " ".join("".join(" " if unicodedata.category(c) in ("Cc", "Cs", "Co") else c for c in text).split())


def lower_intent(text: str) -> str:
    """An intent the way a search box would store it: one line, lower case, no closing punctuation or stray quotes."""
    visible = "".join(c if c.isprintable() else " " for c in unicodedata.normalize("NFKC", text))
    text, before = " ".join(visible.split()).lower(), ""
    while text != before:
        before, text = text, text.strip(" .!?")
        for quote in "\"'":  # around the whole text, or without a partner; `sign that says "open late"` keeps its own
            around = text.startswith(quote) and text.endswith(quote) and text.count(quote) == 2
            if around or text.count(quote) % 2:
                text = text.strip(quote)
    return text


def harmless(text: str) -> str:
    """The text without anything that a tokenizer takes for a special token, such as <|end|>, </s>, <pad> or [INST]."""
    return regex.sub(r"<(?=[|/a-zA-Z<])|\[(?=/?INST\])", r"\g<0> ", text)


def is_empty(intent: str) -> bool:
    """Whether an intent asks for nothing: it holds no letter, digit or emoji."""
    return not regex.search(r"[\p{L}\p{N}\p{So}]", intent)


def spelled_out(intent: str) -> str:
    """An intent of emoji alone as their names, such as "fox face"; any other as it is."""
    if WORD.search(intent):
        return intent
    return " ".join(unicodedata.name(c, "").lower() for c in intent if unicodedata.category(c) == "So")


def words(text: str) -> list[str]:
    """Lower-case words of a text, without punctuation; in scripts without spaces, each character is a word."""
    return WORD.findall(text.lower())


def pieces(text: str) -> list[str]:
    """A text cut into words, each with the space before it, if it has one: joined, they are the text.

    White space counts as one space, and the first word has one before it. In scripts without spaces each character,
    with the punctuation around it, is a word.
    """
    return PIECE.findall(" " + " ".join(text.split()))


def closed_up(text: str) -> str:
    """A text with one space for any white space, and none between characters of scripts without spaces."""
    return GAP.sub("", " ".join(text.split()))


def count_words(text: str) -> int:
    """Number of words, split at white space; in scripts without spaces, each character is a word."""
    return len(text.split()) if text.isascii() else len(PIECE.findall(text))


@lru_cache(maxsize=10_000)
def script_of(letter: str) -> str:
    """Script of a letter by its Unicode name, such as LATIN, CJK, ARABIC or DEVANAGARI."""
    return unicodedata.name(unicodedata.normalize("NFKC", letter)[0], "UNKNOWN").split()[0]


def scripts(text: str) -> Counter[str]:
    """How many letters of a text each script has; Japanese has three."""
    return Counter(script_of(letter) for letter in text if letter.isalpha())


def degenerate(prompt: str, intent: str, known: Iterable[str] = ("LATIN",)) -> bool:
    """Whether a prompt is broken: empty, unprintable, in a loop, or in a script that is neither known nor its intent's.

    What the intent repeats itself ("ho ho ho") is no loop.
    """
    if not WORD.search(prompt) or any(unicodedata.category(c) in ("Cc", "Co", "Cs") or c == "\ufffd" for c in prompt):
        return True
    lower, asked = prompt.lower(), intent.lower()
    if any(loop[0] not in asked for loop in LOOP.finditer(lower)):
        return True
    return not scripts(prompt).keys() <= {"LATIN", *known, *scripts(intent)}


def repeats(prompt: str, intent: str) -> bool:
    """Whether a prompt says words of more than three letters again, beyond one for every WORDS_PER_REPEAT of its words.

    What the intent says as often is no repetition.
    """
    said = Counter(stem(word) for word in words(prompt) if len(word) > 3)
    asked = Counter(map(stem, words(intent)))
    return sum(n > max(1, asked[word]) for word, n in said.items()) > count_words(prompt) // WORDS_PER_REPEAT


@cache
def _stemmer() -> Any:
    import snowballstemmer

    return snowballstemmer.stemmer("english")


@lru_cache(maxsize=100_000)
def stem(word: str) -> str:
    """Stem of a word (Snowball, English): the same for "dog" and "dogs"."""
    return _stemmer().stemWord(word)


def stems(text: str) -> set[str]:
    """Stems of a text's words."""
    return set(map(stem, words(text)))


def distinct(items: Iterable[str]) -> Iterator[str]:
    """Each item once, in the order of the first occurrence; works on endless iterables too."""
    seen = set()
    for item in items:
        if item not in seen:
            seen.add(item)
            yield item


def share(text: str, seed: int) -> float:
    """A number from 0 to 1 that depends only on the text and the seed."""
    digest = hashlib.blake2b(f"{seed} {text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
