"""The embedded collection: synthetic items with titles and keywords, tiles to show them, and intents with judged items.

In go a seed and the ontology with data/collection.yaml; out come items, JPEG tiles with metadata in them, intents and
visits with the grade of every relevant item. Grades follow from what an item is made of; nothing here knows embeddings.
"""

from __future__ import annotations

import random
import re
import textwrap
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from udrl_utils.ontology import Domain, Words, ontology
from udrl_utils.search.images import xmp
from udrl_utils.tasks import load_data

FORMS = ("short", "long", "vague")  # of intents
HISTORY = 3  # items that a visitor has looked at before anything is recommended


@dataclass(frozen=True)
class Facts:
    """What an item is made of."""

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
    """An intent, or a history of item ids, and the grade of each relevant item: 3 exact, 2 near, 1 a substitute."""

    text: str
    form: str
    grades: dict[str, int]
    history: tuple[str, ...] = ()


def invent(seed: int, count: int) -> list[Facts]:
    """`count` items; the same seed gives the same items, and a larger count begins with those of a smaller one."""
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
    """A subject of the domain; some are much more frequent than others, as in any catalogue."""
    return rng.choices(domain.countable, [1 / (1 + k) ** 0.7 for k in range(len(domain.countable))])[0]


def _tag(facts: dict[str, str], rng: random.Random) -> tuple[str, tuple[str, ...]]:
    """Title and keywords as a contributor might write them: with synonyms, some facts left out, mostly the subject."""
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


def tile(item: Facts) -> Image.Image:
    """A placeholder picture: a quilt in the item's colors and its title, with the width and height of its form."""
    world, rng, zoom = load_data("collection"), random.Random(item.id), 2  # drawn larger, so that edges come out smooth
    width, height = (zoom * side for side in world["forms"][item.form]["size"])
    paper, ink, *accents = world["palettes"][item.palette]["colors"]
    image = Image.new("RGB", (width, height), paper)
    pen = ImageDraw.Draw(image)
    columns, rows = max(3, round(width / 110)), max(2, round(0.6 * height / 110))
    wide, high = width / columns, 0.6 * height / rows
    for column, row in product(range(columns), range(rows)):
        ground, disc = rng.sample([*accents, paper], 2)
        x, y, turn = column * wide, row * high, rng.randrange(4)
        pen.rectangle([x, y, x + wide, y + high], fill=ground)
        left, top = x - wide * (turn in (0, 3)), y - high * (turn in (0, 1))  # a quarter disc around one of the corners
        pen.pieslice([left, top, left + 2 * wide, top + 2 * high], 90 * turn, 90 * turn + 90, fill=disc)
    lines = textwrap.wrap(item.title, max(12, round(width / 38)))
    at_100 = ImageFont.load_default(100)
    widest = max(map(at_100.getlength, lines))
    font = ImageFont.load_default(min(92 * width / widest, 0.34 * height / len(lines) / 1.2, 64))
    pen.multiline_text((width / 2, height * 0.8), "\n".join(lines), ink, font, anchor="mm", align="center")
    return image.reduce(zoom)


def draw(items: list[Facts], folder: Path) -> None:
    """Save the tile of each item as <folder>/<id>.jpg, its title and keywords in the file as XMP."""
    folder.mkdir(parents=True, exist_ok=True)
    for item in items:
        tile(item).save(folder / f"{item.id}.jpg", quality=88, xmp=xmp(item.title, item.keywords))


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
    """Up to `count` intents of each form in FORMS, none of them in `seen`, with the items relevant to them."""
    found = []
    for form in FORMS:
        rng = random.Random(f"{seed} {form} intents")
        asked = dict(islice(_asked(form, items, rng), 20 * count))  # a small collection has fewer different ones
        new = [(text, wants) for text, wants in asked.items() if text not in seen]
        found += [Judged(text, form, grades(wants, items)) for text, wants in new[:count]]
    return found


def _asked(form: str, items: list[Facts], rng: random.Random) -> Iterator[tuple[str, dict[str, str]]]:
    """Intents of a form with the facets that they want, each met by some item of the collection; without end."""
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
    """Histories of HISTORY items that somebody looked at for one reason: a theme and a style, purpose or palette.

    Relevant next are the other items of that theme: grade 3 where the reason fits too, else 1.
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
