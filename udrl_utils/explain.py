"""Figures of notebook 03 that explain the idea: the way of a pair, a row with its mask, which commands are feasible.

Pairs, rows and a codec go in; a figure or HTML comes out. Results are drawn in `figures`.
"""

from __future__ import annotations

import html
import textwrap
from typing import TYPE_CHECKING, Any

import pandas as pd
import seaborn

from udrl_utils.figures import panels

if TYPE_CHECKING:
    from IPython.display import HTML
    from matplotlib.figure import Figure

    from udrl_utils.commands import CommandCodec

COLOURS = {"read": "#e6e6e6", "learnt": "#cfe3f5", "countdown": "#f9dcb5"}


def idea(pair: pd.Series, rewards: list[str], tokens: list[str]) -> Figure:
    """The way of one annotated pair to a training row, and the way back at inference; `tokens` are its command."""
    figure, (axis,) = panels(1, width=11, height=3.3)
    axis.set(xlim=(0, 11), ylim=(0, 3.3))
    axis.axis("off")
    wrap = lambda text: "\n".join(textwrap.wrap(textwrap.shorten(text, 90), 26))  # noqa: E731
    reached = "\n".join(f"{name} {pair[name]:.3g}" for name in rewards)
    places = [token.strip("<|>").split(":") for token in tokens]
    placed = "\n".join("in words" if name == "length" else f"{name}: level {level}" for name, level in places)
    wanted = "\n".join("length 12" if name == "length" else f"{name}: high" for name in rewards)
    above = [("pair", f"{wrap(pair.intent)}\n→ {wrap(pair.prompt)}"), ("rewards it got", reached), ("levels", placed)]
    above += [("command", "\n".join(tokens)), ("row", "command + intent\n→ prompt")]
    below = [("new prompt", "written by\nthe student"), ("student", "has learnt\ncommand + intent\n→ prompt")]
    below += [("row to complete", "command + intent\n→ ?"), ("command", "as tokens"), ("rewards we want", wanted)]
    for top, boxes, arrow, title in ((3.2, above, "->", "Training"), (1.45, below, "<-", "Inference")):
        axis.text(0.05, top, title, fontsize=12, weight="bold", color="C0" if arrow == "->" else "C3")
        for k, (name, text) in enumerate(boxes):
            left = 0.1 + 2.2 * k
            axis.text(left, top - 0.25, name, fontsize=9, weight="bold", va="top")
            face = {"boxstyle": "round,pad=0.4", "facecolor": "#f4f4f4", "edgecolor": "0.7"}
            axis.text(left + 0.05, top - 0.58, text, fontsize=7.5, va="top", family="monospace", bbox=face)
            if k:
                end, start = (left - 0.1, top - 0.33), (left - 0.75, top - 0.33)
                axis.annotate("", end, start, arrowprops={"arrowstyle": arrow, "color": "0.3"})
    return figure


def coloured(row: dict[str, list[int]], tokenizer: Any) -> HTML:
    """A tokenized row (input_ids, labels) as coloured tokens: grey is read, blue is learnt, orange is the countdown."""
    from IPython.display import HTML

    spans = []
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        text = tokenizer.decode([token])
        kind = "read" if label == -100 else "countdown" if text.startswith("<|length") else "learnt"
        look = f"background:{COLOURS[kind]};color:black;border-radius:3px;padding:1px 3px;margin:1px;white-space:pre"
        spans.append(f'<span style="{look}" title="{kind}">{html.escape(text)}</span>')
    legend = " ".join(
        f'<span style="background:{c};color:black;padding:1px 6px">{k}</span>' for k, c in COLOURS.items()
    )
    return HTML(f'<div style="font-family:monospace;line-height:2">{"".join(spans)}</div><p>{legend}</p>')


def feasible(codec: CommandCodec) -> Figure:
    """Train pairs per combination of the first two commanded levels, one panel per task that has both."""
    first, second = codec.levels[:2]
    tasks = [task for task in codec.joint if {first, second} <= set(codec.edges[task])]
    figure, axes = panels(max(1, len(tasks)), height=3.6)
    for axis, task in zip(axes, tasks, strict=False):
        table = pd.DataFrame(codec.joint[task], columns=["band", *codec.edges[task], "pairs"])
        counts = table.pivot_table(index=first, columns=second, values="pairs", aggfunc="sum")
        counts = counts.reindex(index=range(codec.bins), columns=range(codec.bins))
        seaborn.heatmap(counts, cmap="viridis", ax=axis, cbar_kws={"label": "pairs"})
        axis.invert_yaxis()
        axis.set(title=task, xlabel=f"{second} [level]", ylabel=f"{first} [level]")
    return figure
