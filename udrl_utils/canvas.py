"""A canvas for pictures made of discs, polygons and text.

Everything is drawn at twice its size and then made smaller, which smooths the edges.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

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
