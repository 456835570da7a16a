"""Rows of text from a file of the user or a Hub data set, and the intents among them.

In goes where the rows are, out come data frames of text and lists of intents. What cannot be read is refused in one
line that names the row or the column.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from udrl_utils.errors import SettingsError
from udrl_utils.fields import FORMATS, NAMED
from udrl_utils.settings import DistillationSettings
from udrl_utils.text import WORD, clean_intent


def read_table(source: str, columns: list[str], optional: Iterable[str] = ()) -> pd.DataFrame:
    """Rows of a file, by its ending (FORMATS, each also with .gz); anything else is a Hub data set's train split.

    `columns` become text; a missing value becomes "". Those of the `optional` columns that the table has stay as they
    are.
    Raises: SettingsError when the source cannot be read or lacks a column; it names the row, or the nearest column.
    """
    path = Path(source)
    zipped = path.suffix.lower() == ".gz"
    ending = (path.with_suffix("") if zipped else path).suffix.lower()
    try:
        if path.is_dir():
            raise ValueError("it is a folder")
        if path.exists() or ending in FORMATS or source.startswith((".", "/", "~")):
            table = _read_file(path, ending, columns, zipped)
        else:
            from datasets import load_dataset

            table = load_dataset(source, split="train").to_pandas()
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, (p.name for p in path.parent.glob("*")), 1)
        hint = f"; did you mean {str(path.parent / near[0])!r}?" if near else ""
        raise SettingsError(f"cannot read {source!r}: there is no such file{hint}") from None
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SettingsError(f"cannot read {source!r}: {reason}") from None
    for column in columns:
        if column not in table.columns:
            lower = {str(name).strip().lower(): name for name in table.columns}
            near = difflib.get_close_matches(column.lower(), lower, 1)
            hint = f"; the nearest is {lower[near[0]]!r}" if near else ""
            has = ", ".join(map(str, table.columns))
            raise SettingsError(f"{source!r} has no column {column!r}; it has {has}{hint}")
    for column in columns:
        for row, value in enumerate(table[column], 1):
            if isinstance(value, (dict, list)):
                raise SettingsError(f"{source!r}: row {row} has no text in column {column!r}: {str(value)[:60]}")
    text = table[columns].astype(object).where(table[columns].notna(), "").astype(str)
    return text.join(table[[column for column in optional if column in table]])


def _read_file(path: Path, ending: str, columns: list[str], zipped: bool) -> pd.DataFrame:
    """Rows of a file. Raises: FileNotFoundError, or another error whose first line says what is wrong."""
    content = path.read_bytes()
    content = gzip.decompress(content) if zipped else content
    if ending == ".parquet":
        return pd.read_parquet(io.BytesIO(content))
    if ending == ".xlsx":
        return pd.read_excel(io.BytesIO(content), dtype=str, keep_default_na=False)
    if ending not in FORMATS:
        raise ValueError(f"a file should end in {NAMED}, also with .gz")
    text = decode(content)
    if ending == ".txt":
        return pd.DataFrame({columns[0]: text.splitlines()})
    if ending == ".tsv":
        return _separated(text, "\t", csv.QUOTE_NONE)
    if ending == ".csv":
        first, rest = text.partition("\n")[::2]
        if first.startswith("sep="):  # a line for Excel
            text, first = rest, rest.partition("\n")[0]
        between = "," if set(columns) & set(next(csv.reader([first]), [])) else max(",;\t", key=first.count)
        return _separated(text, between if between in first else "\x1f")  # one column: its texts may hold commas
    lines = [line for line in text.split("\n") if line.strip()]
    if ending == ".json":
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            if not error.msg.startswith("Extra data"):
                raise
            rows = [_parsed(number, line) for number, line in enumerate(lines, 1)]  # it is .jsonl by another name
        if isinstance(rows, dict):  # columns, each a list
            return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in rows.items()})
        return _records(rows if isinstance(rows, list) else [rows], columns)
    return _records([_parsed(number, line) for number, line in enumerate(lines, 1)], columns)


def _separated(text: str, between: str, quoting: int = csv.QUOTE_MINIMAL) -> pd.DataFrame:
    """Rows of fields; those that a row lacks are empty. Raises: ValueError that names the row or the line."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # of the whole process: never smaller than it was
    reader, rows = csv.reader(io.StringIO(text), delimiter=between, quoting=quoting, strict=True), []
    try:
        header = next(reader, [])
        for number, row in enumerate(filter(None, reader), 1):
            if len(row) > len(header):
                hint = "" if quoting else f": a text that holds {between!r} needs quotes around it"
                raise ValueError(f"row {number} has {len(row)} fields, and the header {len(header)}{hint}")
            rows.append(row + [""] * (len(header) - len(row)))
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None
    if len(set(header)) < len(header):
        raise ValueError(f"two columns have the same name: {', '.join(header)}")
    return pd.DataFrame(rows, columns=header, dtype=str)


def _parsed(number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"row {number} is not JSON ({error}): {line[:60]}") from None


def _records(rows: list[Any], columns: list[str]) -> pd.DataFrame:
    """A table of JSON rows: objects, or plain texts where one column is wanted. A row that is null is empty."""
    plain = len(columns) == 1
    for number, row in enumerate(rows, 1):
        if not (isinstance(row, dict) or row is None or (plain and isinstance(row, str))):
            raise ValueError(f"row {number} is no object with {', '.join(columns)}: {json.dumps(row)[:60]}")
    records = [row if isinstance(row, dict) else {columns[0]: row} for row in rows]
    return pd.DataFrame.from_records(records, columns=None if records else columns).astype(object)


def decode(content: bytes) -> str:
    """Text of a file in UTF-8 or, where its first bytes say so, UTF-16. Raises: ValueError that names the line."""
    wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"line {line} is not UTF-8: save the file as UTF-8") from None
    if "\0" in text:
        raise ValueError(
            f"line {text[: text.index(chr(0))].count(chr(10)) + 1} has a zero byte: save the file as UTF-8"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def load_intents(settings: DistillationSettings) -> list[str]:
    """Distinct intents of a file or a Hub data set, in the order of the file; a line says what was left out, if any.

    Raises: SettingsError when the source is empty or cannot be read.
    """
    table, source = read_table(settings.intents, [settings.intents_column]), f"parameter intents={settings.intents!r}"
    typed = [clean_intent(text) for text in table[settings.intents_column]]
    named = [text for text in typed if WORD.search(text)]
    once = {text.casefold(): text for text in reversed(named)}  # the first of those that differ in case alone
    intents = [text for text in dict.fromkeys(named) if once[text.casefold()] == text]
    left_out = {
        "empty": typed.count(""),
        "without a letter or digit": sum(map(bool, typed)) - len(named),
        "repeated": len(named) - len(intents),
    }
    if any(left_out.values()):
        told = ", ".join(f"{n:,} {why}" for why, n in left_out.items() if n)
        print(f"{source}: left out of {len(typed):,}: {told}", flush=True)
    if not intents:
        raise SettingsError(f"{source}: column {settings.intents_column!r} holds no intent")
    return intents[: settings.n_intents or None]
