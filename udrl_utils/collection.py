"""The embedded collection: items whose facts are drawn at random, pictures and metadata made from them, and intents
whose relevant items follow from the facts.

A real catalogue is judged by people. Here an item is relevant to an intent because of what it was made from, in which
no embedding had a say; that is exact, and it is synthetic: it shows that the machinery works, not how well people are
served. Grades follow the exact and substitute classes of the Shopping Queries data set (arXiv 2206.06588).
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from xml.sax.saxutils import escape

from udrl_utils.drawing import paint
from udrl_utils.motifs import motif_of
from udrl_utils.tasks import Domain, Words, load_data, ontology

FORMS = ("short", "long", "vague")  # of intents
HISTORY = 3  # items that a visit has seen before it is recommended any


@dataclass(frozen=True)
class Facts:
    """What an item is made from. `purpose` is '' for pictures made for nothing in particular."""

    id: str
    kind: str
    form: str
    theme: str
    subject: str
    style: str
    palette: str
    purpose: str
    title: str
    keywords: tuple[str, ...]


@dataclass(frozen=True)
class Judged:
    """An intent, or a history of items, and the grade of each relevant item: 3 exact, 2 nearly, 1 a substitute."""

    text: str
    form: str
    grades: dict[str, int]
    history: tuple[str, ...] = ()


def invent(seed: int, count: int) -> list[Facts]:
    """Facts of `count` items; the same seed gives the same ones, and more of them start with the same ones."""
    return [_invent(f"item-{k:05d}", random.Random(f"{seed} item {k}")) for k in range(count)]


def _invent(name: str, rng: random.Random) -> Facts:
    world = load_data("collection")
    domain = rng.choice([domain for domain in ontology() if domain.name in world["themes"]])
    form = rng.choice(list(world["forms"]))
    kind = world["forms"][form]["kind"]
    purposes = [p for p in world["purposes"] if (p in ("decoration", "story")) == (kind == "image")]
    facts = {
        "kind": kind,
        "form": form,
        "theme": domain.name,
        "subject": _popular(domain, rng),
        "style": rng.choice(list(world["styles"])),
        "palette": rng.choice(list(world["palettes"])),
        "purpose": rng.choice(purposes),
    }
    title, keywords = _tag(facts, rng)
    return Facts(id=name, **facts, title=title, keywords=keywords)


def _popular(domain: Domain, rng: random.Random) -> str:
    """A subject of the domain; some are shown much more often than others, as in any catalogue."""
    return rng.choices(domain.countable, [1 / (1 + k) ** 0.7 for k in range(len(domain.countable))])[0]


def _tag(facts: dict[str, str], rng: random.Random) -> tuple[str, tuple[str, ...]]:
    """Title and keywords as a contributor might write them: synonyms, a part of the facts only, the subject mostly."""
    world = load_data("collection")
    said = {
        name: rng.choice(world[f"{name}s"][facts[name]]["words"]) for name in ("form", "style", "palette", "purpose")
    }
    tags = rng.sample(world["themes"][facts["theme"]]["tags"], rng.randint(1, 3))
    pattern = rng.choice(world["titles"]["silent" if rng.random() < 0.2 else facts["kind"]])
    known = {**said, "subject": facts["subject"], "tag": tags[0], "number": str(rng.randint(2, 99))}
    words = [facts["subject"]] * (rng.random() < 0.8) + tags + [said[name] for name in ("style", "palette", "purpose")]
    words += [said["form"]] + ["template"] * (facts["kind"] == "template")
    return Words(rng).fill(pattern, **known), tuple(dict.fromkeys(words))


def draw(items: list[Facts], folder: Path, seed: int) -> None:
    """Paint each item as JPEG, its title and keywords in the file as XMP."""
    world, kinds = load_data("collection"), {domain.name: domain.kind for domain in ontology()}
    folder.mkdir(parents=True, exist_ok=True)
    for facts in items:
        form, purpose = world["forms"][facts.form], world["purposes"][facts.purpose]
        rng = random.Random(f"{seed} {facts.id}")
        shown = rng.choice((facts.subject, purpose["words"][0])) if purpose["line"] else facts.subject
        picture = paint(
            facts.form,
            form["size"],
            motif_of(facts.theme, kinds[facts.theme]),
            facts.style,
            world["palettes"][facts.palette]["colors"],
            (shown[:1].upper() + shown[1:], purpose["line"]),
            rng,
        )
        picture.save(folder / f"{facts.id}.jpg", quality=88, xmp=xmp(facts.title, facts.keywords))


def xmp(title: str, keywords: Collection[str]) -> bytes:
    """An XMP packet with a Dublin Core title and subject, as photo programs write it."""
    words = "".join(f"<rdf:li>{escape(word)}</rdf:li>" for word in keywords)
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/">'
        f'<dc:title><rdf:Alt><rdf:li xml:lang="x-default">{escape(title)}</rdf:li></rdf:Alt></dc:title>'
        f"<dc:subject><rdf:Bag>{words}</rdf:Bag></dc:subject></rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()


def grades(wants: dict[str, str], items: list[Facts]) -> dict[str, int]:
    """Grades of the items that are relevant to what is wanted, by facet; a wanted subject comes with its theme.

    3: every facet fits. 2: the subject, or the theme where no subject is wanted, fits. 1: another subject of the theme.
    """
    topic = "subject" if "subject" in wants else "theme"
    found = {}
    for item in items:
        if item.theme == wants["theme"]:
            fits = [facet for facet in wants if getattr(item, facet) == wants[facet]]
            found[item.id] = 3 if len(fits) == len(wants) else 2 if topic in fits else 1
    return found


def judged_intents(items: list[Facts], seed: int, count: int, seen: Collection[str]) -> list[Judged]:
    """Up to `count` intents each of the three forms, none of them in `seen`, with what is relevant to them."""
    found = []
    for form in FORMS:
        rng = random.Random(f"{seed} {form} intents")
        asked = dict(islice(_asked(form, items, rng), 20 * count))  # a small collection has fewer different ones
        new = [(text, wants) for text, wants in asked.items() if text not in seen]
        found += [Judged(text, form, grades(wants, items)) for text, wants in new[:count]]
    return found


def _asked(form: str, items: list[Facts], rng: random.Random) -> Iterator[tuple[str, dict[str, str]]]:
    """Intents of a form with the facets that they want, each fitted by some item of the collection; without end."""
    world = load_data("collection")
    while True:
        item, pattern = rng.choice(items), rng.choice(world["intents"][form])
        said = {"subject": item.subject, "form": item.form}
        said |= {name: rng.choice(world[f"{name}s"][getattr(item, name)]["words"]) for name in ("style", "palette")}
        said |= {name: rng.choice(world[f"{name}s"][getattr(item, name)]["asks"]) for name in ("theme", "purpose")}
        wanted = {"theme", *re.findall(r"(\w+)}", pattern)}
        text = Words(rng).fill(pattern, **said)
        if form != "short" or len(text.split()) <= 2:
            yield text, {name: getattr(item, name) for name in wanted}


def visits(items: list[Facts], seed: int, count: int) -> list[Judged]:
    """Histories of HISTORY items that somebody looked at for one reason, a theme in a style or for a purpose.

    Relevant next are the others of that theme: grade 3 where the reason fits too, else 1.
    """
    rng, found, titles = random.Random(f"{seed} visits"), [], {item.id: item.title for item in items}
    for _ in range(count):
        item, reason = rng.choice(items), rng.choice(("style", "purpose", "palette"))
        wants = {"theme": item.theme, reason: getattr(item, reason)}
        relevant = {name: 3 if grade == 3 else 1 for name, grade in grades(wants, items).items()}
        fitting = [name for name, grade in relevant.items() if grade == 3]
        rest = [name for name, grade in relevant.items() if grade == 1]
        seen = (rng.sample(fitting, min(HISTORY, len(fitting))) + rng.sample(rest, min(HISTORY, len(rest))))[:HISTORY]
        left = {name: grade for name, grade in relevant.items() if name not in seen}
        if left:
            found.append(Judged(titles[seen[-1]], "visit", left, tuple(seen)))
    return found
