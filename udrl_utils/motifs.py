"""Motifs: what a picture shows, in a few shapes, centered at the origin and reaching about 1 in each direction."""

from __future__ import annotations

import math
from collections.abc import Callable

from udrl_utils.canvas import Canvas


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
