"""The drawn catalogue: items of the ontology with titles, keywords and pictures that Pillow draws."""

from __future__ import annotations

import copy
import math
import random
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from udrl_utils.ontology import Domain, Words, ontology
from udrl_utils.tasks import load_data

if TYPE_CHECKING:
    import random

    from PIL import Image

ZOOM = 2


class Canvas:
    """A picture in the making, in pixels of the finished one; five colors: paper, ink and three accents."""

    def __init__(self, size: Sequence[int], colors: Sequence[str], rng: random.Random):
        from PIL import Image, ImageDraw

        self.width, self.height = size
        self.paper, self.ink, *self.accents = colors
        self.rng = rng
        self.image = Image.new("RGB", (self.width * ZOOM, self.height * ZOOM), self.paper)
        self.draw = ImageDraw.Draw(self.image)
        self.origin, self.unit = (0.0, 0.0), float(ZOOM)

    def at(self, x: float, y: float, unit: float) -> Canvas:
        """The same picture, with (x, y) as its origin and `unit` as its unit."""
        other = copy.copy(self)
        other.origin, other.unit = self._place(x, y), self.unit * unit
        return other

    def _place(self, x: float, y: float) -> tuple[float, float]:
        return self.origin[0] + x * self.unit, self.origin[1] + y * self.unit

    def disc(self, x: float, y: float, r: float, color: str, tall: float = 1.0) -> None:
        """A disc, or an ellipse `tall` times as high as wide."""
        self.draw.ellipse([self._place(x - r, y - r * tall), self._place(x + r, y + r * tall)], fill=color)

    def shape(self, points: Sequence[tuple[float, float]], color: str) -> None:
        """A filled polygon."""
        self.draw.polygon([self._place(*point) for point in points], fill=color)

    def box(self, x: float, y: float, w: float, h: float, color: str, corner: float = 0.0) -> None:
        """A filled rectangle from its upper left corner."""
        edges = [self._place(x, y), self._place(x + w, y + h)]
        self.draw.rounded_rectangle(edges, radius=self.unit * corner, fill=color)

    def line(self, points: Sequence[tuple[float, float]], color: str, width: float = 2.0) -> None:
        """A line through points."""
        places = [self._place(*point) for point in points]
        self.draw.line(places, fill=color, width=max(1, round(self.unit * width)), joint="curve")

    def frame(self, inset: float, color: str, width: float = 1.5) -> None:
        """A rectangle `inset` pixels inside the edges."""
        x, y = self.width - inset, self.height - inset
        self.line([(inset, inset), (x, inset), (x, y), (inset, y), (inset, inset)], color, width)

    def text(self, text: str, x: float, y: float, w: float, h: float, color: str, face: str) -> None:
        """Text centered in a box from its upper left corner, in lines, as large as fits."""
        for size in range(int(h * ZOOM), 8, -2):
            font = font_of(face, size)
            lines = wrap(text, font, w * ZOOM)
            if len(lines) * size * 1.25 <= h * ZOOM and all(font.getlength(line) <= w * ZOOM for line in lines):
                break
        top = (y + h / 2) * ZOOM - (len(lines) - 1) * size * 0.625
        for k, line in enumerate(lines):
            self.draw.text(((x + w / 2) * ZOOM, top + k * size * 1.25), line, color, font, anchor="mm")

    def finished(self) -> Image.Image:
        """The picture at its own size."""
        from PIL import Image

        return self.image.resize((self.width, self.height), Image.Resampling.BOX)


@cache
def font_of(face: str, size: int) -> Any:
    """One of the fonts that come with matplotlib."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{face}.ttf", size)


def wrap(text: str, font: Any, width: float) -> list[str]:
    """Words of a text in lines no wider than `width`, where words allow it."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def mix(one: str, other: str, share: float) -> str:
    """A color on the way from one to the other."""
    from PIL import ImageColor

    pairs = zip(ImageColor.getrgb(one), ImageColor.getrgb(other), strict=True)
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in pairs)


def face(c: Canvas) -> None:
    fur, light, dark = c.accents
    pointed = c.rng.random() < 0.5
    for side in (-1, 1):
        if pointed:
            c.shape([(side * 0.85, -1), (side * 0.1, -0.5), (side * 0.85, 0)], dark)
        else:
            c.disc(side * 0.62, -0.6, 0.32, dark)
    c.disc(0, 0, 0.85, fur)
    c.disc(0, 0.36, 0.42, light, 0.8)
    for side in (-1, 1):
        c.disc(side * 0.34, -0.1, 0.13, c.paper)
        c.disc(side * 0.34, -0.09, 0.08, c.ink)
    c.disc(0, 0.22, 0.13, c.ink, 0.75)


def bird(c: Canvas) -> None:
    body, wing, beak = c.accents
    c.shape([(-1, 0.1), (-0.3, -0.1), (-0.3, 0.4)], wing)
    c.disc(0, 0.15, 0.6, body, 0.8)
    c.disc(0.42, -0.35, 0.33, body)
    c.shape([(0.7, -0.5), (1.05, -0.32), (0.7, -0.2)], beak)
    c.disc(-0.1, 0.1, 0.36, wing, 0.6)
    c.disc(0.5, -0.42, 0.07, c.ink)
    for k in (-0.1, 0.15):
        c.line([(k, 0.6), (k, 0.95)], c.ink, 0.05)


def fish(c: Canvas) -> None:
    body, fin, stripe = c.accents
    c.shape([(-0.5, 0), (-1, -0.45), (-1, 0.45)], fin)
    c.disc(0.1, 0, 0.7, body, 0.65)
    c.shape([(-0.1, -0.4), (0.3, -0.75), (0.4, -0.35)], fin)
    for k in (-0.2, 0.1):
        c.disc(k, 0, 0.08, stripe, 4)
    c.disc(0.5, -0.12, 0.12, c.paper)
    c.disc(0.52, -0.12, 0.06, c.ink)
    for k in range(3):
        c.disc((0.85 + 0.08 * k), -(0.35 + 0.25 * k), 0.06, c.accents[1])


def bug(c: Canvas) -> None:
    body, wing, spot = c.accents
    for side in (-1, 1):
        c.disc(side * 0.45, -0.25, 0.5, wing, 0.8)
        c.disc(side * 0.4, 0.4, 0.36, body)
        c.disc(side * 0.5, -0.25, 0.17, spot)
        c.line([(0, -0.6), (side * 0.35, -1)], c.ink, 0.05)
    c.disc(0, 0, 0.13, c.ink, 5)


def flower(c: Canvas) -> None:
    petal, leaf, heart = c.accents
    c.line([(0, 0), (-0.05, 1)], c.ink, 0.06)
    c.shape([(0, 0.8), (0.5, 0.4), (0.15, 0.9)], leaf)
    count = c.rng.choice((5, 6, 8))
    for k in range(count):
        angle = 2 * math.pi * k / count
        c.disc(0.42 * math.cos(angle), -0.25 + 0.42 * math.sin(angle), 0.28, petal)
    c.disc(0, -0.25, 0.24, heart)


def tree(c: Canvas) -> None:
    crown, light, _ = c.accents
    c.box(-0.08, 0, 0.16, 1, c.ink)
    if c.rng.random() < 0.5:
        for k in range(3):
            w, top = (0.45 + 0.15 * k), -1 + 0.45 * k
            c.shape([(0, top), (-w, top + 0.7), (w, top + 0.7)], crown if k % 2 else light)
    else:
        for dx, dy, size in ((-0.35, -0.1, 0.42), (0.38, -0.15, 0.4), (0, -0.5, 0.5)):
            c.disc(dx, dy, size, crown if dx else light)


def plate(c: Canvas) -> None:
    c.disc(0, 0, 0.95, c.ink)
    c.disc(0, 0, 0.91, c.paper)
    c.disc(0, 0, 0.66, c.accents[1])
    for k in range(7):
        angle, far = c.rng.uniform(0, 2 * math.pi), c.rng.uniform(0.1, 0.45)
        c.disc(far * math.cos(angle), far * math.sin(angle), 0.15, c.accents[k % 3])


def glass(c: Canvas) -> None:
    c.line([(0.1, 0), (0.5, -1)], c.accents[2], 0.08)
    c.shape([(-0.6, -0.7), (0.6, -0.7), (0.4, 1), (-0.4, 1)], c.ink)
    c.shape(
        [
            (-0.5, -0.3),
            (0.5, -0.3),
            (0.35, 0.93),
            (-0.35, 0.93),
        ],
        c.accents[0],
    )
    for dx, dy in ((-0.2, 0), (0.15, 0.25), (-0.05, 0.55)):
        c.disc(dx, dy, 0.12, c.accents[1])


def houses(c: Canvas) -> None:
    for k, dx in enumerate((-0.95, -0.4, 0.2)):
        w, h = 0.62, c.rng.uniform(0.8, 1.6)
        left, top = dx, 0.9 - h
        c.box(left, top, w, h, c.accents[k])
        if c.rng.random() < 0.6:
            c.shape([(left - 0.05, top), (left + w / 2, top - 0.4), (left + w + 0.05, top)], c.ink)
        for row in range(int(h / (0.32))):
            for column in (0.15, 0.6):
                c.box(left + w * column, top + (0.12 + 0.3 * row), w * 0.22, 0.15, c.paper)


def hills(c: Canvas) -> None:
    c.disc(0.45, -0.5, 0.3, c.accents[2])
    c.shape([(-1.1, 0.8), (-0.35, -0.75), (0.4, 0.8)], c.accents[0])
    c.shape([(-0.58, -0.28), (-0.35, -0.75), (-0.12, -0.28)], c.paper)
    c.shape([(-0.5, 0.8), (0.3, -0.35), (1.1, 0.8)], c.accents[1])
    c.box(-1.1, 0.78, 2.2, 0.12, c.ink)


def bust(c: Canvas) -> None:
    coat, hat, skin = c.accents
    c.disc(0, 0.95, 0.75, coat, 0.75)
    c.disc(0, -0.1, 0.42, skin, 1.15)
    if c.rng.random() < 0.5:
        c.box(-0.55, -0.48, 1.1, 0.14, hat, 0.05)
        c.box(-0.36, -0.85, 0.72, 0.42, hat, 0.1)
    else:
        c.disc(0, -0.38, 0.47, hat, 0.7)
    c.shape([(-0.2, 0.42), (0.2, 0.42), (0, 0.85)], c.paper)


def vessel(c: Canvas) -> None:
    body, band, extra = c.accents
    if c.rng.random() < 0.5:  # a lamp
        c.line([(0, -0.2), (0, 0.8)], c.ink, 0.08)
        c.disc(0, 0.85, 0.4, c.ink, 0.25)
        c.shape([(-0.3, -0.9), (0.3, -0.9), (0.65, 0), (-0.65, 0)], body)
        c.box(-0.56, -0.25, 1.12, 0.1, band)
    else:  # a vase
        for dx in (-0.25, 0, 0.25):
            c.line([(0, 0), (dx * 1.6, -0.8)], c.ink, 0.04)
            c.disc(dx * 1.6, -0.85, 0.15, extra)
        c.disc(0, 0.45, 0.52, body, 1.05)
        c.box(-0.2, -0.25, 0.4, 0.4, body)
        c.box(-0.5, 0.35, 1, 0.14, band)


def chair(c: Canvas) -> None:
    back, seat, cushion = c.accents
    c.box(-0.7, -0.8, 1.4, 1.2, back, 0.3)
    c.box(-0.9, -0.1, 0.35, 0.8, seat, 0.12)
    c.box(0.55, -0.1, 0.35, 0.8, seat, 0.12)
    c.box(-0.6, 0.25, 1.2, 0.4, seat, 0.1)
    c.box(-0.25, -0.35, 0.5, 0.5, cushion, 0.08)
    for dx in (-0.7, 0.6):
        c.box(dx, 0.65, 0.1, 0.3, c.ink)


def hammer(c: Canvas) -> None:
    handle, head, wheel = c.accents
    c.line([(-0.7, 0.9), (0.35, -0.45)], handle, 0.18)
    c.line([(-0.05, -0.85), (0.75, -0.1)], c.ink, 0.34)
    for k in range(8):
        angle = math.pi * k / 4
        c.disc(0.5 + 0.36 * math.cos(angle), 0.5 + 0.36 * math.sin(angle), 0.11, wheel)
    c.disc(0.5, 0.5, 0.34, wheel)
    c.disc(0.5, 0.5, 0.14, head)


def shirt(c: Canvas) -> None:
    cloth, trim, _ = c.accents
    c.shape(
        [
            (-0.35, -0.8),
            (-1, -0.35),
            (-0.75, 0.05),
            (-0.5, -0.1),
            (-0.55, 0.9),
            (0.55, 0.9),
            (0.5, -0.1),
            (0.75, 0.05),
            (1, -0.35),
            (0.35, -0.8),
        ],
        cloth,
    )
    c.disc(0, -0.8, 0.3, c.paper, 0.7)
    for k in range(3):
        c.box(-0.5, (0.05 + 0.27 * k), 1, 0.1, trim)


def car(c: Canvas) -> None:
    body, window, stripe = c.accents
    c.shape([(-0.6, 0), (-0.35, -0.55), (0.35, -0.55), (0.7, 0)], body)
    c.shape(
        [
            (-0.42, -0.03),
            (-0.26, -0.42),
            (0.28, -0.42),
            (0.5, -0.03),
        ],
        window,
    )
    c.box(-1, -0.05, 2, 0.5, body, 0.15)
    c.box(-1, 0.15, 2, 0.09, stripe)
    for dx in (-0.55, 0.55):
        c.disc(dx, 0.45, 0.27, c.ink)
        c.disc(dx, 0.45, 0.12, c.paper)


def party(c: Canvas) -> None:
    for k, (dx, dy) in enumerate(((-0.5, -0.2), (0.5, -0.15), (0, -0.5))):
        c.line([(dx, dy), (0, 1)], c.ink, 0.03)
        c.disc(dx, dy, 0.38, c.accents[k], 1.2)
        c.disc((dx - 0.12), (dy - 0.15), 0.07, c.paper, 1.4)
    for k in range(10):
        c.disc(c.rng.uniform(-1, 1), c.rng.uniform(-1, 1), 0.05, c.accents[k % 3])


def trophy(c: Canvas) -> None:
    if c.rng.random() < 0.5:
        c.disc(0, 0, 0.85, c.accents[0])
        for dx in (-0.45, 0.45):
            c.line([(dx, -0.7), (dx * 0.3, 0), (dx, 0.7)], c.paper, 0.07)
    else:
        c.disc(0, -0.3, 0.7, c.accents[2], 0.6)
        c.shape(
            [
                (-0.5, -0.8),
                (0.5, -0.8),
                (0.25, 0.3),
                (-0.25, 0.3),
            ],
            c.accents[0],
        )
        c.box(-0.08, 0.2, 0.16, 0.5, c.ink)
        c.box(-0.4, 0.65, 0.8, 0.2, c.ink, 0.05)


def bars(c: Canvas) -> None:
    for k, h in enumerate((0.5, 0.8, 1.15, 1.6)):
        c.box((-0.85 + 0.45 * k), (0.8 - h), 0.33, h, c.accents[k % 3], 0.05)
    c.line(
        [(-0.8, 0), (-0.2, -0.3), (0.2, -0.6), (0.85, -1)],
        c.ink,
        0.06,
    )
    c.line([(-1, 0.83), (1, 0.83)], c.ink, 0.06)


def note(c: Canvas) -> None:
    for dx in (-0.5, 0.4):
        c.disc(dx, 0.6, 0.27, c.accents[0], 0.8)
        c.box((dx + 0.17), -0.7, 0.1, 1.3, c.ink)
    c.shape(
        [
            (-0.33, -0.8),
            (0.67, -0.95),
            (0.67, -0.6),
            (-0.33, -0.45),
        ],
        c.ink,
    )
    c.disc(0.85, -0.1, 0.12, c.accents[1])


def thought(c: Canvas) -> None:
    for k, size in enumerate((0.9, 0.65, 0.4)):
        c.disc(0.1 * k, 0.1 * k, size, c.accents[k])
    c.shape([(-0.9, 0.9), (-0.2, -0.2), (0.2, 0.9)], c.ink)


def star_sky(c: Canvas) -> None:
    c.disc(0, 0, 0.6, c.accents[0])
    c.disc(-0.2, -0.15, 0.16, c.accents[1])
    c.disc(0.2, 0.2, 0.11, c.accents[1])
    c.line([(-1, 0.3), (0, 0.18), (1, -0.3)], c.accents[2], 0.09)
    for _ in range(9):
        c.disc(c.rng.uniform(-1, 1), c.rng.uniform(-1, 1), 0.035, c.ink)


def weather(c: Canvas) -> None:
    c.disc(0.3, -0.35, 0.45, c.accents[2])
    for dx, dy, size in ((-0.5, 0.1, 0.32), (0, -0.05, 0.42), (0.45, 0.12, 0.3)):
        c.disc(dx, dy, size, c.accents[1])
    c.box(-0.6, 0.1, 1.1, 0.32, c.accents[1], 0.15)
    for dx in (-0.4, -0.05, 0.3):
        c.line([(dx, 0.55), ((dx - 0.1), 0.9)], c.accents[0], 0.07)


BY_THEME: dict[str, Callable] = {
    **{"birds": bird, "sea_life": fish, "insects_and_reptiles": bug, "trees_and_plants": tree, "gardening": flower},
    **{"drinks": glass, "landscapes": hills, "furniture": chair, "tools_and_hardware": hammer},
    **{"business_and_money": bars, "music_and_stage": note, "space_and_science": star_sky},
}
BY_KIND: dict[str, Callable] = {
    **{"creature": face, "plant": flower, "food": plate, "place": houses, "person": bust, "object": vessel},
    **{"garment": shirt, "vehicle": car, "event": party, "activity": trophy, "idea": thought, "nature": weather},
}


def motif_of(theme: str, kind: str) -> Callable[[Canvas], None]:
    """The motif of a theme, or of its kind where it has none of its own."""
    return BY_THEME.get(theme) or BY_KIND[kind]


SERIF, SANS = "DejaVuSerif-Bold", "DejaVuSans-Bold"


def scene(c: Canvas, motif: Callable, title: str, line: str, face: str) -> None:
    w, h = c.width, c.height
    c.disc(w * c.rng.choice((0.14, 0.86)), h * 0.22, h * 0.13, c.accents[2])
    for k, level in enumerate((0.55, 0.72)):
        lift, turn = h * 0.06, c.rng.uniform(0, 6)
        top = [(x, h * level + lift * math.sin(turn + x / w * 7)) for x in range(0, w + 9, 8)]
        c.shape([*top, (w, h), (0, h)], c.accents[1 - k])
    c.disc(w / 2, h * 0.52, h * 0.36, c.paper)
    motif(c.at(w / 2, h * 0.52, h * 0.27))


def portrait(c: Canvas, motif: Callable, title: str, line: str, face: str) -> None:
    w, h = c.width, c.height
    c.box(w * 0.08, h * 0.07, w * 0.84, h * 0.86, c.accents[1], w * 0.42 if c.rng.random() < 0.4 else 6)
    c.disc(w / 2, h / 2, w * 0.36, c.paper)
    motif(c.at(w / 2, h * 0.5, w * 0.27))


def pattern(c: Canvas, motif: Callable, title: str, line: str, face: str) -> None:
    step = c.width / c.rng.choice((3, 4))
    for row in range(5):
        for column in range(-1, 5):
            x, y = (column + 0.5 + 0.5 * (row % 2)) * step, (row + 0.5) * step
            motif(c.at(x, y, step * 0.32))
            c.disc(x + step / 2, y, step * 0.05, c.accents[row % 3])


def poster(c: Canvas, motif: Callable, title: str, line: str, face: str) -> None:
    w, h = c.width, c.height
    c.box(0, h * 0.66, w, h * 0.34, c.ink)
    motif(c.at(w / 2, h * 0.35, w * 0.3))
    c.text(title, w * 0.08, h * 0.69, w * 0.84, h * 0.17, c.paper, face)
    c.text(line, w * 0.15, h * 0.88, w * 0.7, h * 0.05, c.accents[1], face)


def card(c: Canvas, motif: Callable, title: str, line: str, face: str) -> None:
    w, h = c.width, c.height
    c.box(0, 0, w * 0.46, h, c.accents[1])
    c.disc(w * 0.23, h * 0.5, w * 0.19, c.paper)
    motif(c.at(w * 0.23, h * 0.5, w * 0.14))
    c.text(title, w * 0.5, h * 0.2, w * 0.45, h * 0.38, c.ink, face)
    c.line([(w * 0.6, h * 0.65), (w * 0.85, h * 0.65)], c.accents[0])
    c.text(line, w * 0.52, h * 0.7, w * 0.41, h * 0.08, c.ink, face)


def banner(c: Canvas, motif: Callable, title: str, line: str, face: str) -> None:
    w, h = c.width, c.height
    c.shape([(w * 0.6, 0), (w, 0), (w, h), (w * 0.48, h)], c.accents[1])
    c.disc(w * 0.79, h * 0.5, h * 0.38, c.paper)
    motif(c.at(w * 0.79, h * 0.5, h * 0.28))
    c.text(title, w * 0.05, h * 0.17, w * 0.45, h * 0.42, c.ink, face)
    c.box(w * 0.14, h * 0.68, w * 0.27, h * 0.16, c.accents[0], h * 0.08)
    c.text(line or "see more", w * 0.16, h * 0.7, w * 0.23, h * 0.12, c.paper, face)


def invitation(c: Canvas, motif: Callable, title: str, line: str, face: str) -> None:
    w, h = c.width, c.height
    c.frame(10, c.accents[0], 3)
    c.frame(17, c.ink, 1)
    motif(c.at(w / 2, h * 0.3, w * 0.2))
    c.text(title, w * 0.14, h * 0.52, w * 0.72, h * 0.2, c.ink, face)
    c.line([(w * 0.35, h * 0.76), (w * 0.65, h * 0.76)], c.accents[0])
    c.text(line, w * 0.18, h * 0.79, w * 0.64, h * 0.06, c.accents[0], face)


def post(c: Canvas, motif: Callable, title: str, line: str, face: str) -> None:
    w, h = c.width, c.height
    c.disc(w / 2, h * 0.4, w * 0.33, mix(c.paper, c.accents[1], 0.5))
    motif(c.at(w / 2, h * 0.4, w * 0.23))
    c.box(0, h * 0.76, w, h * 0.24, c.accents[0])
    c.text(title, w * 0.06, h * 0.78, w * 0.88, h * 0.2, c.paper, face)


LAYOUTS: dict[str, Callable] = {
    f.__name__: f for f in (scene, portrait, pattern, poster, card, banner, invitation, post)
}


def manner(c: Canvas, style: str) -> None:
    """What a style does to the ground, before anything stands on it."""
    w, h, rng = c.width, c.height, c.rng
    if style == "retro":
        for k in range(0, 24, 2):
            edges = (k * math.pi / 12, (k + 1) * math.pi / 12)
            ends = [(w / 2 + 2 * w * math.cos(a), h * 0.4 + 2 * w * math.sin(a)) for a in edges]
            c.shape([(w / 2, h * 0.4), *ends], mix(c.paper, c.accents[1], 0.35))
    elif style == "playful":
        for k in range(40):
            c.disc(rng.uniform(0, w), rng.uniform(0, h), rng.uniform(2, 5), mix(c.paper, c.accents[k % 3], 0.6))
    elif style == "geometric":
        for k in range(6):
            x, y, size = rng.uniform(0, w), rng.uniform(0, h), rng.uniform(20, 60)
            color = mix(c.paper, c.accents[k % 3], 0.3)
            c.box(x, y, size, size, color) if k % 2 else c.disc(x, y, size * 0.7, color)
    elif style == "rustic":
        for _ in range(500):
            c.disc(rng.uniform(0, w), rng.uniform(0, h), 0.7, mix(c.paper, c.ink, 0.25))
        c.frame(6, c.accents[1], 2)
    elif style == "elegant":
        c.frame(5, c.accents[0], 1)
        c.frame(9, c.accents[0], 1)


def paint(
    form: str,
    size: Sequence[int],
    motif: Callable[[Canvas], None],
    style: str,
    colors: Sequence[str],
    texts: tuple[str, str],
    rng: random.Random,
) -> Image.Image:
    """One picture: its style's ground, its form's layout, a motif, and on templates a title and a line."""
    canvas = Canvas(size, colors, rng)
    manner(canvas, style)
    LAYOUTS[form](canvas, motif, *texts, SERIF if style in ("retro", "elegant", "rustic") else SANS)
    return canvas.finished()


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
