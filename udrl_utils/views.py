"""What a probe looks like: prompts as cards, commanded and achieved side by side, the same with and without a kernel.

Whatever came from a person or a model is escaped, and what cannot be seen in it is made visible.
"""

from __future__ import annotations

import base64
import io
from functools import cache
from typing import TYPE_CHECKING, Any

import pandas

from udrl_utils.figures import axis_label
from udrl_utils.prober import off_target
from udrl_utils.rewards import REWARDS
from udrl_utils.tasks import DATA

if TYPE_CHECKING:
    from pathlib import Path

    import jinja2
    from matplotlib.figure import Figure

    from udrl_utils.commands import CommandCodec

LONGEST = 600  # characters of a text that are shown
JOINER = "\u200d"  # holds the parts of an emoji together


def visible(text: object, most: int = LONGEST) -> str:
    """A text of which all can be seen: control characters as their codes, what is cut off as a count."""
    text = str(text)
    shown = "".join(c if c.isprintable() or c == JOINER else f"⟨{ord(c):04X}⟩" for c in text[:most])
    return shown if len(text) <= most else f"{shown} … ({len(text) - most:,} more characters)"


@cache
def template(name: str) -> jinja2.Template:
    """A template of udrl_utils/data, which escapes whatever is put into it."""
    import jinja2

    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(DATA), autoescape=True, trim_blocks=True)
    environment.filters["visible"] = visible
    return environment.get_template(name)


def probe(samples: pandas.DataFrame, codec: CommandCodec, title: str = "") -> str:
    """Each set of the samples: its intent and command, then one card per prompt, off-target ones marked."""
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


def reward_line(
    name: str, row: pandas.Series, levels: pandas.Series, missed: pandas.Series, codec: CommandCodec
) -> dict[str, Any]:
    """What a card says of one reward; places are shares of the reward's whole range, for the little scale."""
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


def command_of(sample: pandas.Series) -> str:
    """What a sample was commanded, in words; '' where everything was left open."""
    asked = sample.filter(like="asked_").dropna()
    return ", ".join(f"{name} {in_words(name, value)}" for name, value in asked.rename(lambda c: c[6:]).items())


def in_words(name: str, value: float) -> str:
    """A value of a command: words of a length, the quantile level of any other reward."""
    return f"{value:.0f} words" if name == "length" else f"level {value:.2f}"


def sentence(text: str, kind: str = "note") -> str:
    """A line to the person who probes; kind is note, wrong or busy."""
    return template("sentence.html").render(text=text, kind=kind)


def image(figure: Figure, description: str) -> str:
    """A figure as part of a page, with twice the pixels that it is shown with; the figure is closed."""
    import matplotlib.pyplot as plt

    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=200)
    plt.close(figure)  # a notebook would show it again under the next cell
    return template("image.html").render(
        data=base64.b64encode(data.getvalue()).decode(), width=round(100 * figure.get_figwidth()), text=description
    )


def side_by_side(left: str, right: str) -> str:
    """Two views next to each other, one below the other where the page is narrow."""
    return f'<div class="udrl-pair">{left}{right}</div>'


def table(frame: pandas.DataFrame, **options: Any) -> str:
    """A data frame as HTML: texts escaped, all of them visible, none cut off without saying so."""
    with pandas.option_context("display.max_colwidth", None):
        shown = frame.map(lambda cell: visible(cell) if isinstance(cell, str) else cell)
        return f'<div class="udrl-wide">{shown.to_html(border=0, justify="left", **options)}</div>'


def history(probes: list[pandas.DataFrame]) -> str:
    """One row per probe, the latest first: what was asked, and what was achieved on average."""
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
    return style + table(pandas.DataFrame(rows).round(3), index=False, classes="udrl")


def download(file: Path) -> str:
    """A link that saves a file from the page itself."""
    data = base64.b64encode(file.read_bytes()).decode()
    return template("download.html").render(data=data, name=file.name)
