"""The embedded ontology, and the intents that are drawn from it.

In go `data/ontology/*.yaml`, `data/vocabulary.yaml`, `data/intents.yaml` and a seed; out come endless intents.
Nothing here knows what a run does with them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from udrl_utils.tasks import DATA, load_data
from udrl_utils.text import lower_intent, words


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
        read = load_data(f"ontology/{file.stem}").items()
        fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in read}
        domains.append(Domain(name=file.stem, **fields))
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


def filled(pattern: str, rng: random.Random, known: dict[str, str]) -> str:
    """A pattern whose {slots} have the values given in `known`, else words of vocabulary.yaml or subjects, drawn.

    {a:slot} puts an article before what is countable, {many:slot} takes its plural.
    """

    def value(slot: re.Match[str]) -> str:
        form, name = slot.groups()
        if name in known:
            phrase, countable = known[name], known[name] not in uncountable_subjects()
        elif name in load_data("vocabulary"):
            phrase, countable = rng.choice(load_data("vocabulary")[name]), True
        else:
            phrase, countable = rng.choice(subjects_of(name))
        if not countable or form is None:
            return phrase
        return with_article(phrase) if form == "a" else plural(phrase)

    return re.sub(r"\{(?:(a|many):)?(\w+)\}", value, pattern)


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
    """Endless intents of 1-20 words, the way people type them for a task; the same seed gives the same ones.

    A domain of the ontology, one of its subjects and a pattern of intents.yaml are drawn, and the pattern is filled.
    """
    rng = random.Random(f"intents {seed} {task}")
    patterns = load_data("intents")
    while True:
        domain = rng.choice(ontology())
        of_task, x = patterns[task], rng.choice(domain.subjects)
        groups = [patterns["any"]["any"], of_task["any"], of_task.get(domain.kind, of_task["any"])]
        [group] = rng.choices(groups, (1, 2, 2))
        phrases = {
            name: rng.choice(getattr(domain, f"{name}s")) for name in ("scene", "detail", "template", "follow_up")
        }
        sibling = rng.choice([subject for subject in domain.subjects if subject != x])
        known = {**phrases, "related": rng.choice(domain.related), "x": x, "sibling": sibling}
        intent = lower_intent(filled(rng.choice(group), rng, known))
        if len(intent.split()) <= 20:
            yield intent


@cache
def noun_heads() -> frozenset[str]:
    """Last words of all ontology subjects, without those that the ontology also uses elsewhere."""
    heads = {words(subject)[-1] for subject, _ in subjects_of("thing")}
    lists = [
        *load_data("vocabulary").values(),
        *([*d.scenes, *d.details, *d.templates, *d.follow_ups, *d.related] for d in ontology()),
    ]
    lists += [group for groups in load_data("intents").values() for group in groups.values()]
    used = {word for phrases in lists for phrase in phrases for word in words(re.sub(r"{[^}]*}", " ", phrase))}
    return frozenset(heads - used)
