"""Probes as HTML: scored samples and a codec go in, pages out, for the panel, for static cells and for the report.

A prompt is a card that shows what was commanded beside what was achieved. All text is escaped, and invisible characters
are shown by their codes. How prompts are written and scored is not known here.
"""

from __future__ import annotations

import base64
import io
from functools import cache
from typing import TYPE_CHECKING, Any

import pandas as pd

from udrl_utils.commands import CommandCodec
from udrl_utils.figures import axis_label
from udrl_utils.rewards import REWARDS
from udrl_utils.tasks import DATA

if TYPE_CHECKING:
    from pathlib import Path

    import jinja2
    from matplotlib.figure import Figure

WORDS_OFF = 2  # a length that is off by more words has missed its command
LONGEST = 600  # characters of a text that are shown
JOINER = "\u200d"  # holds the parts of an emoji together


def visible(text: object, most: int = LONGEST) -> str:
    """A text with control characters as codes, cut after `most` characters with the number that is left out."""
    text = str(text)
    shown = "".join(c if c.isprintable() or c == JOINER else f"⟨{ord(c):04X}⟩" for c in text[:most])
    return shown if len(text) <= most else f"{shown} … ({len(text) - most:,} more characters)"


@cache
def template(name: str) -> jinja2.Template:
    """A template of udrl_utils/data; it escapes all text."""
    import jinja2

    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(DATA), autoescape=True, trim_blocks=True)
    environment.filters["visible"] = visible
    return environment.get_template(name)


def probe(samples: pd.DataFrame, codec: CommandCodec, title: str = "") -> str:
    """Each set of the samples: its intent and command, then one card per prompt; off-target cards are marked."""
    missed, levels = off_target(samples, codec), codec.achieved_levels(samples)
    sets = []
    for _, rows in samples.groupby("set", sort=False):
        first, hits = rows.iloc[0], int((~missed.loc[rows.index].any(axis=1)).sum())
        cards = [
            {
                "prompt": row.prompt,
                "off": bool(missed.loc[index].any()),
                "rewards": [
                    reward_line(name, row, levels.loc[index], missed.loc[index], codec) for name in codec.rewards
                ],
            }
            for index, row in rows.iterrows()
        ]
        commands = {command_of(row) for _, row in rows.iterrows()}
        command = commands.pop() if len(commands) == 1 else "a command for each prompt"
        sets.append({"task": first.task, "intent": first.intent, "command": command, "hits": hits, "cards": cards})
    units = [axis_label(name) for name in codec.levels]
    return template("cards.html").render(sets=sets, title=title, units=units)


def reward_line(name: str, row: pd.Series, levels: pd.Series, missed: pd.Series, codec: CommandCodec) -> dict[str, Any]:
    """What a card says about one reward; `asked_at` and `achieved_at` are percentages of the reward's whole range."""
    asked, achieved = row.get(f"asked_{name}"), row[name]
    commanded = asked == asked and asked is not None
    level = min(achieved / codec.longest, 1) if name == "length" else levels[name]
    measured = level == level
    place = asked / codec.longest if commanded and name == "length" else asked
    return {
        "name": name,
        "commanded": in_words(name, asked) if commanded else "open",
        "achieved": (in_words(name, achieved if name == "length" else level) if measured else "needs two prompts"),
        "value": f"{achieved:.3g}" if measured and name != "length" else "",
        "asked_at": round(100 * place) if commanded else None,
        "achieved_at": round(100 * level) if measured else None,
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
    return template("sentence.html").render(text=text, kind=kind)


def image(figure: Figure, description: str) -> str:
    """A figure as an image element with twice the pixels that are shown; the figure is closed."""
    import matplotlib.pyplot as plt

    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=200)
    plt.close(figure)  # otherwise a notebook shows it again
    return template("image.html").render(
        data=base64.b64encode(data.getvalue()).decode(), width=round(100 * figure.get_figwidth()), text=description
    )


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
    style = template("sentence.html").render(text="")
    return style + table(pd.DataFrame(rows).round(3), index=False, classes="udrl")


def download(file: Path) -> str:
    """A link that saves a file from the page itself."""
    data = base64.b64encode(file.read_bytes()).decode()
    return template("download.html").render(data=data, name=file.name)


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

    def missed(row: pd.Series, name: str) -> bool:
        asked, achieved = row[f"asked_{name}"], row[name]
        if pd.isna(asked) or pd.isna(achieved):
            return False
        if name == "length":
            return abs(asked - achieved) > WORDS_OFF
        return abs(codec.bin_of_level(row.task, name, asked) - codec.bin_of_value(row.task, name, achieved)) > 1

    names = [name for name in codec.rewards if f"asked_{name}" in samples]
    missing = {name: [missed(row, name) for _, row in samples.iterrows()] for name in names}
    return pd.DataFrame(missing, index=samples.index, dtype=bool)
