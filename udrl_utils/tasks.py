"""The tasks, the words of texts, and intents or other rows from a file or a Hub data set.

In go YAML files of tasks and tables of the user; out come tasks, intents and data frames of text. Nothing here knows
the settings of a stage, the ontology, the splits or the teacher.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import io
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import regex
import yaml

from udrl_utils.errors import SettingsError

if TYPE_CHECKING:
    from udrl_utils.settings import DistillationSettings

DATA = Path(__file__).parent / "data"
LENGTHS = ("4 to 9", "10 to 20", "22 to 40")  # words of a short, a medium and a long prompt, where a task names none
FORMATS = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".parquet", ".xlsx")
NAMED = " or ".join([", ".join(ending[1:] for ending in FORMATS[:-1]), FORMATS[-1][1:]])
UNSPACED = r"\p{Han}\p{Hiragana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"  # scripts that put no space between words
PIECE = regex.compile(rf"\s?(?:[^\w\s]*(?=[{UNSPACED}])\X[^\w\s]*|[^\s{UNSPACED}]+)")
GAP = regex.compile(rf"(?<=[{UNSPACED}][^\w\s]*) (?=[^\w\s]*[{UNSPACED}])")
WORD = regex.compile(
    rf"(?=[{UNSPACED}])\X|(?![{UNSPACED}])[\p{{L}}\p{{N}}][^\W_{UNSPACED}]*(?:['’-][^\W_{UNSPACED}]+)*"
)
LOOP = regex.compile(  # a syllable or a letter again and again, or one to five words three times in a row
    r"(\p{L}{3,8})\1{2}|(\p{L}{2})\2{3}|(\p{L})\3{5}|\b(\w+(?:\W+\w+){0,4})(?:\W+\4\b){2}"
)
INVISIBLE = dict.fromkeys(map(ord, "\u200b\u2060\ufeff\u00ad"))  # zero-width spaces, byte order mark, soft hyphen


@cache
def load_data(name: str) -> Any:
    """One of the package's YAML files, by its name without ending."""
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


TASKS: dict[str, Task] = {}  # the shipped tasks, and those of the tasks_file that was read last


def add_tasks(file: str | Path) -> list[str]:
    """Register the tasks of a YAML file, in place of earlier ones of the same name. Returns their names.

    Raises: SettingsError when the file cannot be read, or a task lacks something or has an unknown field.
    """
    source = f"parameter tasks_file={str(file)!r}"
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{source} cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{source} is not YAML ({' '.join(str(error).split())})") from None
    if isinstance(content, list) and all(isinstance(fields, dict) for fields in content):
        content = {fields.get("name"): {k: v for k, v in fields.items() if k != "name"} for fields in content}
    if not isinstance(content, dict) or not content:
        raise SettingsError(f"{source} should hold tasks by their names, as udrl_utils/data/tasks.yaml does")
    found = {name: _task(source, name, fields) for name, fields in content.items()}
    TASKS.update(found)
    return list(found)


def _task(source: str, name: Any, fields: Any) -> Task:
    """A task from the fields of a file. Raises: SettingsError."""
    if not regex.fullmatch(r"[a-z][a-z0-9_]*", str(name)):
        raise SettingsError(f"{source}: a task's name should be like product_description, not {name!r}")
    where, fields = f"{source}: task {name}", fields if isinstance(fields, dict) else {}
    optional = {
        "title": name.replace("_", " "),
        "modality": "text",
        "list": fields.get("instruction"),
        "lengths": LENGTHS,
    }
    needed = ("definition", "instruction", "examples")
    for field in needed:
        if not fields.get(field):
            raise SettingsError(
                f"{where} has no {field}; it needs {', '.join(needed)}, and may have {', '.join(optional)}"
            )
    unknown = fields.keys() - {*needed, *optional}
    if unknown:
        raise SettingsError(
            f"{where} has an unknown field {min(unknown)!r}; allowed are {', '.join((*needed, *optional))}"
        )
    values = optional | {key: value for key, value in fields.items() if key not in ("instruction", "examples")}
    sizes = values["lengths"] = tuple(map(str, values["lengths"]))
    try:
        examples = tuple((str(each["intent"]), tuple(map(str, each["prompts"]))) for each in fields["examples"])
    except (TypeError, KeyError):
        raise SettingsError(f"{where}: each of its examples should have an intent and prompts") from None
    if len(examples) < 3 or any(len(prompts) != len(sizes) for _, prompts in examples):
        wanted = f"at least 3 examples, each with {len(sizes)} prompts, of {', '.join(sizes)} words"
        raise SettingsError(f"{where} should have {wanted}")
    return Task(name=name, single=fields["instruction"], examples=examples, **values)


add_tasks(DATA / "tasks.yaml")


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
    """Rows of a file, by its ending (FORMATS, each also with .gz); anything else is a Hub data set's train split.

    `columns` become text; a missing value becomes "". Those of the `optional` columns that the table has stay as they
    are.
    Raises: SettingsError when the source cannot be read or lacks a column; it names the row, or the nearest column.
    """
    path = Path(source)
    endings = [ending.lower() for ending in path.suffixes]
    ending = next(iter([e for e in reversed(endings) if e != ".gz"][:1]), "")
    try:
        if path.is_dir():
            raise ValueError("it is a folder")
        if path.exists() or ending in FORMATS or source.startswith((".", "/", "~")):
            table = _read_file(path, ending, columns, zipped=endings[-1:] == [".gz"])
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
        return pd.read_csv(io.StringIO(text), sep="\t", quoting=csv.QUOTE_NONE, dtype=str, keep_default_na=False)
    if ending == ".csv":
        first = next(csv.reader([text.partition("\n")[0]]), [])
        between = "," if set(columns) & set(first) else max(",;\t", key=text.partition("\n")[0].count)
        return pd.read_csv(io.StringIO(text), sep=between, dtype=str, keep_default_na=False)
    if ending == ".json":
        rows = json.loads(text)
        if isinstance(rows, dict):  # columns, each a list
            return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in rows.items()})
        return _records(rows if isinstance(rows, list) else [rows], columns)
    lines = [line for line in text.split("\n") if line.strip()]
    return _records([_parsed(number, line) for number, line in enumerate(lines, 1)], columns)


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
        return content.decode("utf-16" if wide else "utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"line {line} is not UTF-8: save the file as UTF-8") from None


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
