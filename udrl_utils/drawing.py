"""Pictures drawn from a few facts: a motif for what they show, a layout for their form, a manner for their style."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from udrl_utils.canvas import Canvas, mix

if TYPE_CHECKING:
    import random

    from PIL import Image

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
