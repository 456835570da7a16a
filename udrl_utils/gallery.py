"""Figures of search: what the catalogue looks like, what was found, and what accuracy is paid for diversity."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from udrl_utils.figures import panels, style

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure
    from PIL import Image

SYSTEMS = {
    "raw": "raw intent",
    "mmr": "raw intent, MMR",
    "teacher": "teacher's prompts",
    "student_open": "student, no command",
    "student": "student, commanded",
}


def color(system: str) -> str:
    """The same color for a system in every figure."""
    return f"C{list(SYSTEMS).index(system)}"


def thumbnail(path: str, size: int = 160) -> Image.Image:
    """A small copy of an item's picture; an empty one where it has none or cannot be opened."""
    from pathlib import Path

    from PIL import Image

    from udrl_utils.images import BadImage, open_image

    try:
        image = open_image(Path(path))[0] if path else Image.new("RGB", (size, size), "#eeeeee")
    except BadImage:
        image = Image.new("RGB", (size, size), "#eeeeee")
    image.thumbnail((size, size))
    return image


def contact_sheet(catalog: pandas.DataFrame, seed: int, columns: int = 10, rows: int = 5) -> Figure:
    """Items of the catalogue, drawn at random."""
    shown = catalog.sample(min(columns * rows, len(catalog)), random_state=seed)
    lines = [shown.iloc[start : start + columns] for start in range(0, len(shown), columns)]
    return grids(catalog, {str(k): line.index.tolist() for k, line in enumerate(lines)}, columns, labelled=False)


def grids(
    catalog: pandas.DataFrame, ranked: dict[str, Sequence[int]], columns: int = 8, labelled: bool = True
) -> Figure:
    """One row of thumbnails per ranked list, which goes by its name; the best item is on the left."""
    import matplotlib.pyplot as plt

    style()
    figure = plt.figure(figsize=(1.25 * columns, (1.6 if labelled else 1.25) * len(ranked)), layout="constrained")
    parts = figure.subfigures(len(ranked), squeeze=False)[:, 0]
    for part, (name, places) in zip(parts, ranked.items(), strict=True):
        if labelled:
            part.suptitle(name, x=0.01, ha="left", fontsize=9)
        for axis, place in zip_longest(part.subplots(1, columns), places[:columns]):
            axis.set_axis_off()
            if place is not None:
                axis.imshow(thumbnail(catalog.image.iloc[place]))
    return figure


def accuracy_and_diversity(summary: dict[str, Any], curve: pandas.DataFrame) -> Figure:
    """nDCG@10 against the diversity of the first ten, per form of intent; the gray path follows the diversity command.

    curve: columns form, level, ndcg_10 and diversity.
    """
    forms = [form for form in summary if form != "all"]
    figure, axes = panels(len(forms), width=4.2, height=3.8)
    for axis, form in zip(axes, forms, strict=True):
        path = curve[curve.form == form].groupby("level")[["diversity", "ndcg_10"]].mean()
        axis.plot(path.diversity, path.ndcg_10, color="gray", marker=".", label="student, diversity 0.05 to 0.95")
        for system, metrics in summary[form].items():
            x, y = metrics["diversity"], metrics["ndcg_10"]
            bars = [[[v["mean"] - v["low"]], [v["high"] - v["mean"]]] for v in (x, y)]
            axis.errorbar(x["mean"], y["mean"], bars[1], bars[0], fmt="o", color=color(system), label=SYSTEMS[system])
        axis.set(xlabel="diversity of the first ten [1 - mean cosine]", ylabel="nDCG@10", title=f"{form} intents")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def lever(curve: pandas.DataFrame) -> Figure:
    """Diversity of the found items as the diversity command rises; the band is the 95% interval over intents."""
    import seaborn

    figure, (axis,) = panels(1, width=6)
    seaborn.lineplot(curve, x="level", y="diversity", marker="o", seed=0, ax=axis)
    axis.set(xlabel="commanded diversity [quantile level]", ylabel="diversity of the first ten [1 - mean cosine]")
    return figure


def gains(differences: dict[str, Any], names: Sequence[str], base: str) -> Figure:
    """What each system gains over `base`, with 95% intervals, one panel per metric."""
    forms = [form for form in differences if form != "all"]
    systems = list(differences[forms[0]])
    names = [name for name in names if name in differences[forms[0]][systems[0]]]
    figure, axes = panels(len(names), width=3.6, height=0.32 * len(forms) * len(systems) + 1.4, sharey=True)
    labels = [f"{SYSTEMS[system]}, {form}" for form in forms for system in systems]
    for axis, name in zip(axes, names, strict=True):
        cells = [differences[form][system][name] for form in forms for system in systems]
        for row, cell in enumerate(cells):
            bar = [[cell["mean"] - cell["low"]], [cell["high"] - cell["mean"]]]
            axis.errorbar(cell["mean"], row, xerr=bar, fmt="o", capsize=3, color=color(systems[row % len(systems)]))
        axis.axvline(0, color="gray", linestyle="--", linewidth=1)
        axis.set(xlabel=f"difference to {SYSTEMS[base]}", title=name, yticks=range(len(labels)), yticklabels=labels)
    axes[0].invert_yaxis()
    return figure
