"""Probes as HTML: scored samples and a codec go in, pages out, for the panel, for static cells and for the report.

A prompt is a card that shows what was commanded beside what was achieved. All text is escaped, and invisible characters
are shown by their codes. How prompts are written and scored is not known here.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from udrl_utils.commands import CommandCodec
from udrl_utils.figures import axis_label
from udrl_utils.rewards import REWARDS
from udrl_utils.tasks import DATA

WORDS_OFF = 2  # a length that is off by more words has missed its command
LONGEST = 600  # characters of a text that are shown
JOINER = "\u200d"  # holds the parts of an emoji together


def visible(text: object, most: int = LONGEST) -> str:
    """A text with control characters as codes, cut after `most` characters with the number that is left out."""
    text = str(text)
    shown = "".join(c if c.isprintable() or c == JOINER else f"⟨{ord(c):04X}⟩" for c in text[:most])
    return shown if len(text) <= most else f"{shown} … ({len(text) - most:,} more characters)"


TEMPLATES = jinja2.Environment(loader=jinja2.FileSystemLoader(DATA), autoescape=True, trim_blocks=True)
TEMPLATES.filters["visible"] = visible


def render(template: str, **values: Any) -> str:
    """A page from a template of udrl_utils/data, which escapes all text."""
    return TEMPLATES.get_template(template).render(values)


def probe(samples: pd.DataFrame, codec: CommandCodec, title: str = "") -> str:
    """Each set of the samples: its intent and command, then one card per prompt; off-target cards are marked."""
    missed, levels = off_target(samples, codec), codec.achieved_levels(samples)
    sets = []
    for _, rows in samples.groupby("set", sort=False):
        cards = []
        for index, row in rows.iterrows():
            off = missed.loc[index]
            lines = [reward_line(name, row, levels.loc[index], off, codec) for name in codec.rewards]
            cards.append({"prompt": row.prompt, "off": off.any(), "rewards": lines})
        commands = {command_of(row) for _, row in rows.iterrows()}
        command = commands.pop() if len(commands) == 1 else "a command for each prompt"
        first, hits = rows.iloc[0], sum(not card["off"] for card in cards)
        sets.append({"task": first.task, "intent": first.intent, "command": command, "hits": hits, "cards": cards})
    units = [axis_label(name) for name in codec.levels]
    return render("cards.html", sets=sets, title=title, units=units)


def reward_line(name: str, row: pd.Series, levels: pd.Series, missed: pd.Series, codec: CommandCodec) -> dict[str, Any]:
    """What a card says about one reward; `asked_at` and `achieved_at` are percentages of the reward's whole range."""
    asked, is_length = row.get(f"asked_{name}"), name == "length"
    achieved, whole = (row[name], codec.longest) if is_length else (levels[name], 1)
    commanded, measured = pd.notna(asked), pd.notna(achieved)
    return {
        "name": name,
        "commanded": in_words(name, asked) if commanded else "open",
        "achieved": in_words(name, achieved) if measured else "needs two prompts",
        "value": f"{row[name]:.3g}" if measured and not is_length else "",
        "asked_at": round(asked / whole * 100) if commanded else None,
        "achieved_at": round(min(achieved / whole, 1) * 100) if measured else None,
        "state": ("off" if missed.get(name) else "on") if commanded and measured else "",
    }


def command_of(sample: pd.Series) -> str:
    """The command of a sample in words; '' where every reward was left open."""
    asked = sample.filter(like="asked_").dropna()
    return ", ".join(f"{name} {in_words(name, value)}" for name, value in asked.rename(lambda c: c[6:]).items())


def in_words(name: str, value: float) -> str:
    """A value of a command: words of a length, the quantile level of any other reward."""
    return f"{value:.0f} words" if name == "length" else f"level {value:.2f}"


def sentence(text: str, kind: str = "note") -> str:
    """A status line; `kind` is note, wrong or busy."""
    return render("sentence.html", text=text, kind=kind)


def image(figure: Figure, description: str) -> str:
    """A figure as an image element with twice the pixels that are shown; the figure is closed."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=200)
    plt.close(figure)  # otherwise a notebook shows it again
    encoded, width = base64.b64encode(data.getvalue()).decode(), round(100 * figure.get_figwidth())
    return render("image.html", data=encoded, width=width, text=description)


def side_by_side(*parts: str) -> str:
    """Views next to each other, or one below the other on a narrow page."""
    return f'<div class="udrl-pair">{"".join(parts)}</div>'


def table(frame: pd.DataFrame, **options: Any) -> str:
    """A data frame as HTML."""
    with pd.option_context("display.max_colwidth", None):
        shown = frame.map(lambda cell: visible(cell) if isinstance(cell, str) else cell)
        return f'<div class="udrl-wide">{shown.to_html(border=0, justify="left", **options)}</div>'


def history(probes: list[pd.DataFrame]) -> str:
    """One row per probe, the latest first: what was commanded, and the mean of what was achieved."""
    rows = [
        {
            **samples.iloc[0][["probe", "run", "kind", "task", "intent"]],
            "command": " ... ".join(dict.fromkeys(command_of(samples.iloc[end]) for end in (0, -1))) or "open",
            "prompts": len(samples),
            **{f"mean {name}": samples[name].mean() for name in REWARDS if name in samples},
        }
        for samples in reversed(probes)
    ]
    return sentence("") + table(pd.DataFrame(rows).round(3), index=False, classes="udrl")  # brings its style


def download(file: Path) -> str:
    """A link that saves a file from the page itself."""
    data = base64.b64encode(file.read_bytes()).decode()
    return render("download.html", data=data, name=file.name)


def grid(sweeps: pd.DataFrame) -> pd.DataFrame:
    """One prompt of each sweep under its lowest, its middle and its highest command; one set per intent."""
    first = sweeps.drop_duplicates("set")
    sets = first.groupby(["task", "intent", "reward"], sort=False)["set"]
    place, last = sets.cumcount(), sets.transform("size") - 1
    chosen = first[(place == 0) | (place == last // 2) | (place == last)]
    return chosen.assign(set=chosen.groupby(["task", "intent"], sort=False).ngroup())


def off_target(samples: pd.DataFrame, codec: CommandCodec) -> pd.DataFrame:
    """Which samples missed which commanded reward: one column of bool per reward.

    A length is missed when it is off by more than 2 words; any other reward when its level token is neither the one
    that was commanded nor next to it.
    """
    bins, missed = codec.bins_of(samples), pd.DataFrame(index=samples.index, dtype=bool)
    for name in codec.rewards:
        if f"asked_{name}" not in samples:
            continue
        asked = samples[f"asked_{name}"].astype(float)
        if name == "length":
            missed[name] = (asked - samples.length).abs() > WORDS_OFF
        else:
            levels = zip(samples.task, asked, strict=True)
            wanted = [np.nan if np.isnan(level) else codec.bin_of_level(task, name, level) for task, level in levels]
            missed[name] = (bins[name] - wanted).abs() > 1
    return missed
