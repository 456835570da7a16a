"""The catalogue: a table of items with columns id, title, keywords and image (a path or '').

It comes from Font Awesome's icons, a folder of images with metadata, or a table, with the searches that people judged.
Items that cannot be shown are left out and counted by reason. Nothing here knows how the catalogue is searched.
"""

from __future__ import annotations

import itertools
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from udrl_utils.encoder import Embed
from udrl_utils.errors import RunError, SettingsError
from udrl_utils.search import icons
from udrl_utils.search.images import MAX_TEXT, SUFFIXES, BadImage, clean_keywords, clean_text, open_image
from udrl_utils.settings import SearchSettings
from udrl_utils.tables import read_table
from udrl_utils.text import distinct, share

COLUMNS = ["id", "title", "keywords", "image"]
KEYWORDS = 2  # weight of the mean of an item's keywords, where its title weighs 1
Row = dict[str, Any]


class Judged(NamedTuple):
    """A search and the grades of items by id; 0 is not relevant."""

    text: str
    grades: dict[str, int]


def load_catalogue(settings: SearchSettings, folder: Path) -> tuple[pd.DataFrame, Counter[str]]:
    """The catalogue that the settings name, and how many items were left out or cut, by reason.

    `folder` is emptied first; pictures of icons and images out of a table are written into it.
    Raises: SettingsError when the source cannot be read, RunError when none of its items can be shown.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if settings.catalog == "icons":
        rows, counts = collect(iter(icons.items(folder, settings.n_items)))
    elif Path(settings.catalog).is_dir():
        rows, counts = read_folder(Path(settings.catalog), settings.n_items)
    else:
        rows, counts = read_items(settings.catalog, settings.n_items, folder)
    if not rows:
        raise RunError(f"parameter catalog={settings.catalog!r} holds no item that can be shown ({dict(counts)})")
    return as_table(rows), counts


def as_table(rows: Iterable[Row]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=COLUMNS)


def read_folder(folder: Path, limit: int = 0) -> tuple[list[Row], Counter[str]]:
    """Items of the images in a folder and its sub-folders, by name; at most `limit`, 0 for all."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.startswith("."))
    names = ((file.relative_to(folder).with_suffix("").as_posix(), file) for file in files)
    return collect(({"id": name, "image": file} for name, file in names), limit)


def read_items(source: str, limit: int, folder: Path) -> tuple[list[Row], Counter[str]]:
    """Items of a csv, tsv, jsonl or parquet file, or of a Hub data set: id, title, and maybe keywords, image.

    Paths of images are relative to the file's folder. Images inside the table are written into `folder`.
    """
    rows = read_table(source, ["id", "title"], optional=("keywords", "image")).fillna("").to_dict("records")
    folder.mkdir(parents=True, exist_ok=True)

    def image_of(place: int, value: Any) -> Path | None:
        if isinstance(value, dict) and value.get("bytes"):  # how `datasets` keeps images
            file = folder / f"{place:07d}{Path(str(value.get('path') or 'image.jpg')).suffix}"
            file.write_bytes(value["bytes"])
            return file
        return Path(source).parent / str(value) if value and not isinstance(value, dict) else None

    return collect(({**row, "image": image_of(place, row.get("image"))} for place, row in enumerate(rows)), limit)


def collect(rows: Iterator[Row], limit: int = 0) -> tuple[list[Row], Counter[str]]:
    """Items that can be shown, at most `limit` (0 for all), and counts of items left out and titles cut, by reason.

    Each row has an id and an image (a path or None), and a title and keywords as far as they are known.
    """
    counts, found = Counter[str](), dict[str, Row]()
    for row in rows:
        try:
            item = _item(row, counts)
            if item["id"] in found:
                raise BadImage("duplicate id")
        except BadImage as reason:
            counts[str(reason)] += 1
            continue
        found[item["id"]] = item
        if len(found) == limit:
            break
    return list(found.values()), counts


def _item(row: Row, counts: Counter[str]) -> Row:
    """One item of the catalogue. Raises: BadImage with the reason why it cannot be shown."""
    name, title, words = clean_text(row["id"]), row.get("title") or "", split_keywords(row.get("keywords"))
    path = row["image"]
    if path is not None:
        if path.suffix.lower() not in SUFFIXES:
            raise BadImage("not named as an image")
        metadata = open_image(path)[1]
        title, words = title or metadata.title, words or metadata.keywords
    if not name:
        raise BadImage("no id")
    if len(str(title)) > MAX_TEXT:
        counts["title cut (kept)"] += 1
    title = clean_text(title)
    if not title and not words:
        if path is None:
            raise BadImage("neither title, keywords nor image")
        title = clean_text(re.sub(r"[\W_]+", " ", path.stem))
    return {"id": name, "title": title or words[0], "keywords": ", ".join(words), "image": str(path or "")}


def split_keywords(value: Any) -> tuple[str, ...]:
    """Keywords of a table's cell: a list, or text split at commas and semicolons."""
    if value is None or isinstance(value, str):
        return clean_keywords(re.split("[,;]", (value or "")[:100_000]))
    return clean_keywords(value)


def texts_of(catalogue: pd.DataFrame) -> list[str]:
    """Each item in words: its title and keywords."""
    return (catalogue.title + ", " + catalogue.keywords).str.strip(" ,").tolist()


def vectors_of(catalogue: pd.DataFrame, embed: Embed) -> np.ndarray:
    """Unit vectors of the items, shape (items, width), float32: title plus KEYWORDS times the mean of its keywords."""
    keywords = [words.split(", ") if words else [] for words in catalogue.keywords]
    vectors, every = embed(catalogue.title.tolist()).copy(), list(distinct(itertools.chain(*keywords)))
    known = dict(zip(every, embed(every), strict=True))
    for vector, words in zip(vectors, keywords, strict=True):
        if words:
            together = sum(known[word] for word in words)
            vector += KEYWORDS * together / np.linalg.norm(together)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def judged_searches(settings: SearchSettings, items: pd.DataFrame) -> list[Judged]:
    """At most search_intents judged searches (0: all), by a hash, of a file or of the icons. Raises: SettingsError."""
    found = icons.judgements(set(items.id)) if settings.catalog == "icons" else {}
    if settings.judgements:
        found = read_judgements(settings.judgements, set(items.id))
    chosen = sorted(found, key=lambda text: share(text, settings.seed))
    return [Judged(text, found[text]) for text in chosen[: settings.search_intents or None]]


def read_judgements(source: str, known: set[str]) -> dict[str, dict[str, int]]:
    """Grades by intent and item, of a table (intent, id, grade) with items that are known. Raises: SettingsError."""
    table = read_table(source, ["intent", "id", "grade"])
    table = table[table.id.isin(known)]
    if table.empty:
        raise SettingsError(f"parameter judgements={source!r} names no item of the catalogue")
    numbers = pd.to_numeric(table.grade, errors="coerce")
    wrong = table.grade[~((numbers >= 0) & (numbers % 1 == 0))].tolist()
    if wrong:
        raise SettingsError(f"parameter judgements={source!r} has grade {wrong[0]!r}; grades are whole numbers from 0")
    by_intent = table.assign(grade=numbers.astype(int)).groupby("intent")
    return {text: dict(zip(rows.id, rows.grade.tolist(), strict=True)) for text, rows in by_intent}
