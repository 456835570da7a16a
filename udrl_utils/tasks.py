"""The tasks, the words of texts, and intents or other rows from a file or a Hub data set.

In go YAML files of the package and tables of the user; out come tasks, clean intents and data frames of text. Nothing
here knows the ontology, the splits or the teacher.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from udrl_utils.errors import SettingsError
from udrl_utils.settings import DistillationSettings

DATA = Path(__file__).parent / "data"


@cache
def load_data(name: str) -> Any:
    """One of the package's YAML files, by its name without ending."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load((DATA / f"{name}.yaml").read_text(encoding="utf-8"), Loader=loader)


@dataclass(frozen=True)
class Task:
    """One kind of prompt, and how a teacher is asked for it."""

    name: str
    title: str
    modality: str
    definition: str
    list: str  # how several prompts are asked for at once
    single: str  # how a single prompt is asked for
    lengths: tuple[str, ...]  # words of a short, a medium and a long prompt, such as "4 to 8"
    examples: tuple[tuple[str, tuple[str, ...]], ...]  # an intent, and a prompt of each length


def _load_tasks() -> dict[str, Task]:
    tasks = {}
    for name, fields in load_data("tasks").items():
        examples = tuple((example["intent"], tuple(example["prompts"])) for example in fields["examples"])
        tasks[name] = Task(name=name, **{**fields, "examples": examples, "lengths": tuple(fields["lengths"])})
    return tasks


TASKS: dict[str, Task] = _load_tasks()


def clean_intent(text: str) -> str:
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
    """The text without anything that a tokenizer takes for a special token, such as <|end|>, </s> or <pad>."""
    return re.sub(r"<(?=[|/a-zA-Z])", "< ", text)


def words(text: str) -> list[str]:
    """Lower-case words of a text, without punctuation."""
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.lower())


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


def read_table(source: str, columns: list[str], optional: Iterable[str] = ()) -> pd.DataFrame:
    """Rows of a txt (one per line), csv, tsv, jsonl or parquet file; anything else is a Hub data set's train split.

    `columns` become text. Those of the `optional` columns that the table has stay as they are.

    Raises: SettingsError when the source cannot be read or lacks a column.
    """
    path = Path(source)
    readers = {
        ".txt": lambda: pd.DataFrame({columns[0]: path.read_text(encoding="utf-8").splitlines()}),
        ".csv": lambda: pd.read_csv(path, dtype=str, keep_default_na=False),
        ".tsv": lambda: pd.read_csv(path, sep="\t", quoting=3, dtype=str, keep_default_na=False),
        ".jsonl": lambda: pd.read_json(path, lines=True, dtype=False),
        ".parquet": lambda: pd.read_parquet(path),
    }
    try:
        if path.suffix in readers:
            table = readers[path.suffix]()
        else:
            from datasets import load_dataset

            table = load_dataset(source, split="train").to_pandas()
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SettingsError(
            f"cannot read {source!r}, neither as txt, csv, tsv, jsonl or parquet nor as a Hub data set: {reason}"
        ) from None
    for column in columns:
        if column not in table.columns:
            raise SettingsError(f"{source!r} has no column {column!r}; it has {', '.join(map(str, table.columns))}")
    text = table[columns].astype(object).where(table[columns].notna(), "").astype(str)  # a missing value becomes ""
    return text.join(table[[column for column in optional if column in table]])


def load_intents(settings: DistillationSettings) -> list[str]:
    """Distinct intents of a file or a Hub data set, cleaned, in the order of the file.

    Raises: SettingsError when the source is empty or cannot be read.
    """
    table = read_table(settings.intents, [settings.intents_column])
    intents = distinct(filter(None, map(clean_intent, table[settings.intents_column])))
    chosen = list(itertools.islice(intents, settings.n_intents or None))
    if not chosen:
        raise SettingsError(
            f"parameter intents={settings.intents!r}: column {settings.intents_column!r} holds no intent"
        )
    return chosen


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
