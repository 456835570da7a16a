"""Figures of the notebooks: one visual style, colour-blind safe, every axis with its unit.

In go data frames and metrics that a stage measured; out come matplotlib figures. Nothing here measures anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn
from IPython import get_ipython
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib_inline.backend_inline import set_matplotlib_formats

from udrl_utils.rewards import REWARDS

if TYPE_CHECKING:
    from udrl_utils.commands import CommandCodec

SYSTEM_LABELS = {
    "teacher": "teacher",
    "student_best": "student, best command",
    "student_open": "student, no command",
    "sft_plain": "plain SFT, no prefixes",
    "nearest_copy": "copy of nearest intent",
}
GUIDE = {"color": "gray", "linestyle": "--", "linewidth": 1}  # the line that says what should be


def labelled(systems: Iterable[str]) -> dict[str, str]:
    """Systems and how they are shown, in the order that they are shown in; a baseline goes by its model's name."""
    known = {system: label for system, label in SYSTEM_LABELS.items() if system in systems}
    return known | {system: system.split("/")[-1] for system in systems if system not in known}


def style() -> None:
    """Set the style, and twice the pixels for figures that a notebook shows; every figure function calls it."""
    seaborn.set_theme(
        context="notebook",
        style="whitegrid",
        palette="colorblind",
        rc={"figure.dpi": 110, "savefig.bbox": "tight", "axes.titlesize": 11},
    )
    if get_ipython():
        set_matplotlib_formats("retina")


def axis_label(name: str, prefix: str = "") -> str:
    """Name of a reward with its unit."""
    return f"{prefix}{name} [{REWARDS[name].unit}]" if name in REWARDS else f"{prefix}{name}"


def panels(count: int, width: float = 4.0, height: float = 3.4, **options: Any) -> tuple[Figure, list[Axes]]:
    """A row of axes."""
    style()
    size = (width * count, height)
    figure, axes = plt.subplots(1, count, figsize=size, squeeze=False, layout="constrained", **options)
    plt.close(figure)  # otherwise a notebook shows it again at the end of the cell
    return figure, list(axes[0])


def save(figure: Figure, folder: Path, name: str) -> Figure:
    """Write the figure as PNG and return it, so that it is the last line of a cell."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=200)  # twice the pixels that a page shows it with
    plt.close(figure)
    return figure


def pair_overview(pairs: pd.DataFrame) -> Figure:
    """Words of intents and prompts, per task."""
    figure, (left, right) = panels(2, width=5)
    intent_words = pairs.intent.str.split().str.len().clip(upper=40)  # a bar for each, even where an intent is a book
    sizes = pairs.assign(words=pairs.prompt.str.split().str.len(), intent_words=intent_words)
    seaborn.histplot(sizes.drop_duplicates("intent"), x="intent_words", discrete=True, ax=left)
    left.set(xlabel="intent length [words, at most 40]", ylabel="number of intents", title="Intents: short and long")
    seaborn.kdeplot(sizes, x="words", hue="task", common_norm=False, cut=0, ax=right)
    right.set(xlabel="prompt length [words]", ylabel="density [per word]", title="Prompts: every length is taught")
    return figure


def reward_correlations(annotated: pd.DataFrame, rewards: list[str]) -> Figure:
    """Spearman correlation between rewards, one panel per task."""
    groups = list(annotated.groupby("task", sort=False))
    figure, axes = panels(len(groups))
    for axis, (task, rows) in zip(axes, groups, strict=True):
        table = rows.filter(rewards).corr(method="spearman")
        seaborn.heatmap(table, vmin=-1, vmax=1, cmap="vlag", annot=True, fmt=".2f", square=True, cbar=False, ax=axis)
        axis.set_title(str(task))
    return figure


def loss_curves(log: pd.DataFrame) -> Figure:
    """Training and validation loss over steps; columns step, loss, eval_loss, variant."""
    figure, (axis,) = panels(1, width=7)
    seaborn.lineplot(log.dropna(subset=["loss"]), x="step", y="loss", hue="variant", ax=axis)
    if "eval_loss" in log:
        held = log.dropna(subset=["eval_loss"])
        seaborn.scatterplot(held, x="step", y="eval_loss", hue="variant", marker="D", s=50, legend=False, ax=axis)
    axis.set(
        xlabel="optimiser steps",
        ylabel="cross entropy [nats per token]",
        title="Loss (line: training, diamonds: validation)",
        yscale="log",
    )
    return figure


def edge(probes: pd.DataFrame) -> Figure:
    """Share of samples that did what was asked at the edge of the data; diamonds: the share among train pairs."""
    figure, (axis,) = panels(1, width=8, height=0.5 * len(probes) + 1.2)
    labels = probes.probe + " (" + probes.asked + ")"
    seaborn.barplot(x=probes.achieved, y=labels, color="C0", ax=axis)
    axis.scatter(probes.train.astype(float), range(len(probes)), marker="D", color="C1", zorder=3)
    axis.set(xlabel="share of samples [0 to 1]", ylabel="", xlim=(0, 1))
    return figure


def ablations(variants: pd.DataFrame) -> Figure:
    """How well commands are obeyed by each variant, one dot per seed; the dashed line is the full variant's mean."""
    names = [name for name in variants if name not in ("variant", "seed")]
    figure, axes = panels(len(names), width=3.2, height=0.3 * variants.variant.nunique() + 1.2, sharey=True)
    for axis, name in zip(axes, names, strict=True):
        seaborn.stripplot(variants, x=name, y="variant", jitter=False, ax=axis)
        full = variants.loc[variants.variant == "full", name]
        if len(full):
            axis.axvline(full.mean(), **GUIDE)
        axis.set(xlabel=name, ylabel="")
    return figure


def commanded(name: str) -> str:
    """Axis label of what was commanded: words of a length, quantile levels of any other reward."""
    return f"commanded {name} [{'words' if name == 'length' else 'quantile level'}]"


def draw_levels(axis: Axes, levels: list[dict[str, float]], label: str) -> None:
    """Mean achieved per commanded value, with its 95% interval."""
    asked, mean, low, high = ([level[key] for level in levels] for key in ("asked", "mean", "low", "high"))
    axis.plot(asked, mean, marker="o", markersize=3, label=label)
    axis.fill_between(asked, low, high, alpha=0.2)


def calibration(metrics: dict[str, Any], name: str) -> Figure:
    """Commanded against achieved, per task, with the mean's 95% interval; the diagonal is perfect obedience."""
    tasks = [task for task in metrics["calibration"] if task != "all" and name in metrics["calibration"][task]]
    figure, axes = panels(len(tasks), sharey=True)
    for axis, task in zip(axes, tasks, strict=True):
        result = metrics["calibration"][task][name]
        draw_levels(axis, result["levels"], task)
        if name == "length":
            asked = [level["asked"] for level in result["levels"]]
            axis.plot(asked, asked, **GUIDE)
        axis.set(xlabel=commanded(name), title=f"{task}\nSpearman {result['spearman']:.3f}")
    axes[0].set_ylabel(axis_label(name, "achieved "))
    return figure


def before_and_after(samples: pd.DataFrame, metrics: dict[str, Any], codec: CommandCodec) -> Figure:
    """What was asked for (x) and what was written (y), per reward: by the student and models to compare it with.

    Samples have columns model and reward, metrics are those of `obedience`. Lines are means with 95% intervals, over
    steps of 4 words where lengths are asked for; the dashed diagonal is what was asked.
    """
    figure, axes = panels(len(metrics), height=4.0)
    blue, orange = seaborn.color_palette("colorblind")[:2]
    looks = {
        "base": {"label": "before: the base that training starts from", "color": "0.45", "marker": "s"},
        "student": {"label": "after: the student, trained on commands", "color": blue, "marker": "o"},
        "novice": {"label": "the student before its rounds", "color": "0.2", "marker": "v"},
        "shuffled": {"label": "a student trained on shuffled commands", "color": orange, "marker": "^"},
        "plain": {"label": "plain SFT on the same pairs, without commands", "color": "0.45", "marker": "s"},
    }
    levels = codec.achieved_levels(samples)
    for axis, (name, found) in zip(axes, metrics.items(), strict=True):
        values = samples if name == "length" else levels
        asked = samples[f"asked_{name}"]
        asked = asked.groupby(asked // 4).transform("mean") if name == "length" else asked
        rows = samples.assign(asked=asked, achieved=values[name]).loc[samples.reward == name].dropna(subset="achieved")
        unit, top = ("words", rows.asked.max() + 4) if name == "length" else ("0 lowest, 1 highest", 1)
        axis.plot([0, top], [0, top], label="exactly what was asked", **GUIDE)
        for model in found:
            sets = rows[rows.model == model].groupby(["set", "asked"]).achieved.mean().reset_index()
            seaborn.lineplot(sets, x="asked", y="achieved", n_boot=300, seed=0, legend=False, ax=axis, **looks[model])
        first = next(iter(found))
        before, after = (f"{found[model]['spearman'] + 0:.2f}" for model in (first, "student"))
        how = "without" if first == "plain" else "before"
        axis.set(xlabel=f"asked for [{unit}]", ylabel=f"written [{'words' if name == 'length' else '0 to 1'}]")
        axis.set(xlim=(0, top), ylim=(0, top), title=f"{name.capitalize()}: agreement {before} {how}, {after} after")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.suptitle(
        "What the model was asked for and what it wrote, before and after training on commands\n"
        "(agreement: 1 where every request is followed, 0 where none is)",
        fontsize=12,
    )
    return figure


def trade_off(sets: pd.DataFrame, samples: pd.DataFrame) -> Figure:
    """Relevance against diversity: where each system stands, and where commands take the student."""
    tasks = list(sets.task.unique())
    figure, axes = panels(len(tasks), width=4.6, height=4.2)
    labels = labelled(sets.system.unique())
    colors = dict(zip(labels, seaborn.color_palette("colorblind", len(labels)), strict=True))
    for axis, task in zip(axes, tasks, strict=True):
        path = samples[(samples.task == task) & (samples.reward == "diversity")]
        if len(path):
            path = path.groupby("asked_diversity").agg({"diversity": "mean", "relevance": "mean"})
            label = "student, diversity commanded 0.05 to 0.95"
            axis.plot(path["diversity"], path["relevance"], color="gray", marker=".", linewidth=1, label=label)
        for system in sets[sets.task == task].system.unique():
            rows = sets[(sets.task == task) & (sets.system == system)]
            x, y, look = rows.diversity, rows.relevance, {"fmt": "o", "color": colors[system], "label": labels[system]}
            axis.errorbar(x.mean(), y.mean(), xerr=1.96 * x.sem(), yerr=1.96 * y.sem(), **look)
        axis.set(xlabel="set diversity [1 - mean cosine]", ylabel="relevance [cosine]", title=task)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def comparison(metrics: dict[str, Any]) -> Figure:
    """Relevance and diversity of every system relative to the teacher, with 95% intervals."""
    systems = labelled(metrics["relative_to_teacher"])
    del systems["teacher"]
    figure, axes = panels(2, width=5.4, height=2.8, sharey=True)
    for axis, name in zip(axes, ("relevance", "diversity"), strict=True):
        for row, system in enumerate(systems):
            ratio = {key: 100 * value for key, value in metrics["relative_to_teacher"][system][name].items()}
            interval = [[ratio["mean"] - ratio["low"]], [ratio["high"] - ratio["mean"]]]
            axis.errorbar(ratio["mean"], row, xerr=interval, fmt="o", capsize=3, color=f"C{row}")
        axis.axvline(100, **GUIDE)
        axis.set_xlabel(f"{name} [% of the teacher's mean]")
        axis.set_yticks(range(len(systems)), systems.values())
        axis.set_ylim(len(systems) - 0.5, -0.5)
    return figure


def headline(metrics: dict[str, Any]) -> Figure:
    """The result in one picture: commanded against achieved length, relevance and diversity, a line per task."""
    overall = metrics["calibration"]["all"]
    figure, axes = panels(len(overall))
    for axis, (name, found) in zip(axes, overall.items(), strict=True):
        for task, rewards in metrics["calibration"].items():
            if task != "all" and name in rewards:
                draw_levels(axis, rewards[name]["levels"], task)
        title = f"{name}: Spearman {found['spearman']:.2f}"
        axis.set(xlabel=commanded(name), ylabel=axis_label(name, "achieved "), title=title)
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def sweep(samples: pd.DataFrame, codec: CommandCodec) -> Figure:
    """Rewards commanded from low to high: each dot is a prompt, the line their mean, the diagonal perfect obedience.

    Column `reward` says which reward a sample's command swept.
    """
    names = list(samples.reward.unique())
    levels = codec.achieved_levels(samples)
    figure, axes = panels(len(names), width=4.4)
    for axis, name in zip(axes, names, strict=True):
        rows, is_length = samples.reward == name, name == "length"
        points = samples[rows].assign(achieved=(samples if is_length else levels)[name][rows])
        top = samples.asked_length.max() + 4 if is_length else 1
        axis.plot([0, top], [0, top], **GUIDE)
        columns = {"x": f"asked_{name}", "y": "achieved", "hue": "task", "ax": axis}
        seaborn.lineplot(points, marker="o", errorbar=None, legend=False, **columns)
        seaborn.scatterplot(points, s=14, alpha=0.5, legend=axis is axes[0], **columns)
        axis.set(xlabel=commanded(name), ylabel=commanded(name).replace("commanded", "achieved"), title=name)
        axis.set(xlim=(0, top), ylim=(0, None if is_length else 1.02))
    return figure
