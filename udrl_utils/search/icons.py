"""The default catalogue: the icons of Font Awesome Free, with names, search terms and categories written by people.

In goes the package `fontawesomefree` (icons CC BY 4.0); out come items, pictures, judged searches and groups of items.
Half of an icon's search terms describe it in the catalogue. The other half are searched for, so that matching words is
not enough. Nothing here knows how the catalogue is searched.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from udrl_utils.errors import extra
from udrl_utils.search.images import clean_keywords
from udrl_utils.text import share

SIZE = 192  # pixels of a picture's height


@cache
def icons() -> dict[str, dict[str, Any]]:
    """The solid icons by name, in an order that depends on their names alone. Raises: SettingsError."""
    found = json.loads((_metadata() / "icon-families.json").read_text(encoding="utf-8"))
    solid = {name: icon for name, icon in found.items() if "solid" in icon["svgs"].get("classic", {})}
    return {name: solid[name] for name in sorted(solid, key=lambda name: share(name, 0))}


def _metadata() -> Path:
    with extra("search", "parameter catalog='icons'"):
        import fontawesomefree
    return Path(fontawesomefree.__file__).parent / "static" / "fontawesomefree" / "metadata"


@cache
def halves(name: str) -> tuple[list[str], list[str]]:
    """An icon's search terms that the catalogue holds, and those that are searched for, split by a hash."""
    terms = clean_keywords(icons()[name]["search"]["terms"])
    terms = sorted(set(terms) - {icons()[name]["label"].lower()}, key=lambda term: share(f"{name} {term}", 0))
    return terms[: -(-len(terms) // 2)], terms[-(-len(terms) // 2) :]


def items(folder: Path, limit: int) -> list[dict[str, Any]]:
    """At most `limit` icons (0 for all) as rows of a catalogue; their pictures are written into the folder."""
    with extra("search", "parameter catalog='icons'"):
        import resvg_py
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {name: folder / f"{name}.png" for name in list(icons())[: limit or None]}
    for name, file in pictures.items():
        drawing = icons()[name]["svgs"]["classic"]["solid"]["raw"]
        file.write_bytes(resvg_py.svg_to_bytes(drawing, height=SIZE, background="white", skip_system_fonts=True))
    return [{"id": n, "title": icons()[n]["label"], "keywords": halves(n)[0], "image": f} for n, f in pictures.items()]


def judgements(ids: Collection[str]) -> dict[str, dict[str, int]]:
    """Terms that are searched for, each with all icons among `ids` that people gave it to: {term: {id: 1}}."""
    found: dict[str, dict[str, int]] = {term: {} for name in ids for term in halves(name)[1]}
    for name in ids:
        for term in found.keys() & {term for half in halves(name) for term in half}:
            found[term][name] = 1
    return found


def groups(ids: Collection[str]) -> list[list[str]]:
    """The icons among `ids` that Font Awesome puts into one category, for each category."""
    categories = yaml.safe_load((_metadata() / "categories.yml").read_text(encoding="utf-8"))
    return [[name for name in category["icons"] if name in ids] for category in categories.values()]
