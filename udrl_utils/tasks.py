"""The tasks, and where intents come from: the embedded ontology, or any file or Hub data set."""

from __future__ import annotations

import hashlib
import itertools
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pandas

from udrl_utils.settings import DistillationSettings, SettingsError

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
    list: str  # how several prompts at once are asked for
    single: str  # how one is
    lengths: tuple[str, ...]  # of a short, a middling and a long prompt, in words of that request
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
        for quote in "\"'":  # those around the whole, or without a partner; `sign that says "open late"` keeps its own
            whole = text.startswith(quote) and text.endswith(quote) and text.count(quote) == 2
            if whole or text.count(quote) % 2:
                text = text.strip(quote)
    return text


def harmless(text: str) -> str:
    """The text without anything that a tokenizer could take for a special token, all of which begin with <|."""
    return text.replace("<|", "< |")


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


@dataclass(frozen=True)
class Domain:
    """One file of the ontology: subjects, and phrases that fit any of them."""

    name: str
    title: str
    kind: str
    countable: tuple[str, ...]
    uncountable: tuple[str, ...]
    scenes: tuple[str, ...]
    details: tuple[str, ...]
    templates: tuple[str, ...]
    follow_ups: tuple[str, ...]
    related: tuple[str, ...]

    @property
    def subjects(self) -> tuple[str, ...]:
        return self.countable + self.uncountable


@cache
def ontology() -> tuple[Domain, ...]:
    """The embedded ontology, one domain per file of `data/ontology`."""
    domains = []
    for file in sorted((DATA / "ontology").glob("*.yaml")):
        fields = load_data(f"ontology/{file.stem}")
        domains.append(Domain(name=file.stem, **{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}))
    return tuple(domains)


def plural(noun: str) -> str:
    """Regular English plural of a noun phrase."""
    head, of, rest = noun.partition(" of ")
    if of:
        return plural(head) + of + rest
    if re.search(r"(s|x|z|ch|sh)$", noun):
        return noun + "es"
    if re.search(r"[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    if re.search(r"(f|fe)$", noun) and re.search(r"(lea|lo|wol|shel|kni|wi|hal|scar|dwar)fe?$", noun):
        return re.sub(r"fe?$", "ves", noun)
    if noun.endswith("man") and not noun.endswith("human"):
        return noun[:-3] + "men"
    return noun + "s"


def with_article(phrase: str) -> str:
    """The phrase after a or an."""
    vowel = re.match(r"(?:[aeio]|u(?!ni|kulele|ke|r[ao]|se|te|sb))", phrase) and not phrase.startswith("one")
    return f"{'an' if vowel or phrase.startswith(('heir', 'hour', 'x-ray')) else 'a'} {phrase}"


class Words:
    """Draws from vocabulary.yaml and from the subjects of the ontology, and fills patterns with what it drew."""

    def __init__(self, rng: random.Random):
        self.rng = rng

    def fill(self, pattern: str, **known: str) -> str:
        """Replace each {slot} of a pattern by a value given in `known`, else by one that is drawn."""
        return re.sub(r"\{(?:(a|many):)?(\w+)\}", lambda m: self._slot(m[1], m[2], known), pattern)

    def _slot(self, form: str | None, name: str, known: dict[str, str]) -> str:
        if name in known:
            phrase, countable = known[name], known[name] not in uncountable_subjects()
        elif name in load_data("vocabulary"):
            phrase, countable = self.rng.choice(load_data("vocabulary")[name]), True
        else:
            phrase, countable = self.rng.choice(subjects_of(name))
        if not countable or form is None:
            return phrase
        return with_article(phrase) if form == "a" else plural(phrase)


@cache
def uncountable_subjects() -> frozenset[str]:
    """Subjects that take no article and no plural."""
    return frozenset(subject for domain in ontology() for subject in domain.uncountable)


@cache
def subjects_of(kind: str) -> tuple[tuple[str, bool], ...]:
    """(subject, countable) of a kind, or of every kind for 'thing', or of a domain by its name."""
    chosen = [d for d in ontology() if kind in ("thing", d.kind, d.name)]
    return tuple((s, True) for d in chosen for s in d.countable) + tuple(
        (s, False) for d in chosen for s in d.uncountable
    )


def ontology_intents(seed: int, task: str) -> Iterator[str]:
    """Intents the way people type them for a task, 1-20 words, without end; the same seed gives the same ones.

    A domain of the ontology, one of its subjects and a pattern of intents.yaml are drawn, and the pattern is filled.
    """
    rng = random.Random(f"intents {seed} {task}")
    fill, patterns = Words(rng).fill, load_data("intents")
    while True:
        domain = rng.choice(ontology())
        of_task, x = patterns[task], rng.choice(domain.subjects)
        groups = [patterns["any"]["any"], of_task["any"], of_task.get(domain.kind, of_task["any"])]
        [group] = rng.choices(groups, (1, 2, 2))
        phrases = {
            name: rng.choice(getattr(domain, f"{name}s", ())) for name in ("scene", "detail", "template", "follow_up")
        }
        sibling = rng.choice([subject for subject in domain.subjects if subject != x])
        known = {**phrases, "related": rng.choice(domain.related), "x": x, "sibling": sibling}
        intent = clean_intent(fill(rng.choice(group), **known))
        if len(intent.split()) <= 20:
            yield intent


def read_table(source: str, columns: list[str], optional: Iterable[str] = ()) -> pandas.DataFrame:
    """Rows of a txt (one a line), csv, tsv, jsonl or parquet file; anything else is a Hub data set's train split.

    The columns are text; those of the optional ones that are there come as they are.

    Raises: SettingsError when the source cannot be read or lacks a column.
    """
    path = Path(source)
    readers = {
        ".txt": lambda: pandas.DataFrame({columns[0]: path.read_text(encoding="utf-8").splitlines()}),
        ".csv": lambda: pandas.read_csv(path, dtype=str, keep_default_na=False),
        ".tsv": lambda: pandas.read_csv(path, sep="\t", quoting=3, dtype=str, keep_default_na=False),
        ".jsonl": lambda: pandas.read_json(path, lines=True, dtype=False),
        ".parquet": lambda: pandas.read_parquet(path),
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
    text = table[columns].astype(object).where(table[columns].notna(), "").astype(str)  # what is missing is empty
    return text.join(table[[column for column in optional if column in table]])


def load_intents(settings: DistillationSettings) -> list[str]:
    """Distinct intents of a file or a Hub data set, cleaned, in their order.

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
    """Items in their order, each once; works on endless ones too."""
    seen = set()
    for item in items:
        if item not in seen:
            seen.add(item)
            yield item


def share(text: str, seed: int) -> float:
    """A number in 0..1 that depends on the text and the seed alone."""
    digest = hashlib.blake2b(f"{seed} {text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


SPLIT_SEED = 1  # another than that by which a teacher is shown examples: splits must not differ in them
HELD_OUT = 0.1  # share of intents that the shipped base never reads: the most that a run from it may test with


def assign_splits(intents: list[str], settings: DistillationSettings) -> tuple[dict[str, str], frozenset[str]]:
    """Split of each intent, and the held-out nouns that no train or validation text may contain.

    Splits go by a hash of the intent, whatever the seed, so that a base trained earlier has met no test intent.
    Besides, a share of the rare nouns is held out with every intent that mentions one, so that the analysis can
    ask for things the student has never seen.
    """
    held_out = held_out_nouns(intents, settings)
    splits = {}
    for intent in intents:
        at = share(intent, SPLIT_SEED)
        if at < settings.test_fraction or not held_out.isdisjoint(words(intent)):
            splits[intent] = "test"
        else:
            validation = at < settings.test_fraction + settings.validation_fraction
            splits[intent] = "validation" if validation else "train"
    return splits, held_out


def held_out_nouns(intents: list[str], settings: DistillationSettings) -> frozenset[str]:
    """Nouns reserved for the test split: heads of ontology subjects, or rare words of the user's own intents.

    Only nouns that are rare among the intents are taken, so that the train split keeps its size.
    """
    counts = Counter(word for intent in intents for word in set(words(intent)))
    rare = max(2, len(intents) // 200)
    known = noun_heads() if settings.intents == "ontology" else counts
    chosen = {
        w
        for w in known
        if len(w) > 3 and counts[w] <= rare and share(f"noun {w}", SPLIT_SEED) < settings.test_fraction / 2
    }
    return frozenset(chosen | {plural(w) for w in chosen})


@cache
def noun_heads() -> frozenset[str]:
    """Last words of all ontology subjects, less those that the ontology also uses elsewhere."""
    heads = Counter(words(subject)[-1] for subject, _ in subjects_of("thing"))
    lists = [
        *load_data("vocabulary").values(),
        *([*d.scenes, *d.details, *d.templates, *d.follow_ups, *d.related] for d in ontology()),
    ]
    lists += [group for groups in load_data("intents").values() for group in groups.values()]
    used = {word for phrases in lists for phrase in phrases for word in words(re.sub(r"{[^}]*}", " ", phrase))}
    return frozenset(heads.keys() - used)
