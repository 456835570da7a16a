"""What people see of search: galleries of items, figures of the study, and the widget to search with.

In go the catalogue, ranked places and the study's tables; out come figures, HTML and widgets. Titles and intents come
from strangers: they are escaped in HTML and never read as formulas in figures.
"""

from __future__ import annotations

import asyncio
import base64
import io
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import ipywidgets as w
import matplotlib.pyplot as plt
import pandas as pd
import seaborn
from matplotlib.figure import Figure
from PIL import Image

from udrl_utils.figures import panels, style
from udrl_utils.search.images import BadImage, Describer, intent_of, open_image
from udrl_utils.search.retrieval import PromptSearch
from udrl_utils.search.study import WAYS
from udrl_utils.tasks import clean_intent
from udrl_utils.views import sentence, template, visible

SYSTEMS = {
    "raw": "intent alone",
    "mmr": "intent alone, MMR",
    "teacher": "teacher's prompts",
    "student_open": "student, no command",
    "student": "student, commanded",
}
COLORS = {system: f"C{k}" for k, system in enumerate(SYSTEMS)}  # the same in every figure
SHOWN = 12  # items on the widget's page
OPEN = "open"  # the stop of a slider that asks for nothing


def thumbnail(path: str, size: int = 160) -> Image.Image:
    """An item's picture with sides of at most `size` pixels; a gray square where it has none or cannot be opened."""
    try:
        image = open_image(Path(path))[0] if path else Image.new("RGB", (size, size), "#eeeeee")
    except BadImage:
        image = Image.new("RGB", (size, size), "#eeeeee")
    image.thumbnail((size, size))
    return image


def contact_sheet(catalogue: pd.DataFrame, seed: int, columns: int = 10, rows: int = 5) -> Figure:
    """Randomly chosen items of the catalogue."""
    shown = catalogue.sample(min(columns * rows, len(catalogue)), random_state=seed)
    lines = [shown.iloc[start : start + columns] for start in range(0, len(shown), columns)]
    return grids(catalogue, {str(k): line.index.tolist() for k, line in enumerate(lines)}, columns, labelled=False)


def grids(catalogue: pd.DataFrame, ranked: dict[str, Sequence[int]], columns: int = 8, labelled: bool = True) -> Figure:
    """One row of thumbnails per ranked list, under its name; the best item is on the left."""
    style()
    figure = plt.figure(figsize=(1.25 * columns, (1.6 if labelled else 1.25) * len(ranked)), layout="constrained")
    parts = figure.subfigures(len(ranked), squeeze=False)[:, 0]
    for part, (name, places) in zip(parts, ranked.items(), strict=True):
        if labelled:
            part.suptitle(visible(name, 100), x=0.01, ha="left", fontsize=9, parse_math=False)
        for axis, place in zip_longest(part.subplots(1, columns), places[:columns]):
            axis.set_axis_off()
            if place is not None:
                axis.imshow(thumbnail(catalogue.image.iloc[place]))
    return figure


def accuracy_and_diversity(summary: dict[str, Any], curve: pd.DataFrame) -> Figure:
    """nDCG@10 against the diversity of the first ten, per form of intent; the gray path follows the diversity lever.

    curve: of `study.pull_lever`; command and weights move together.
    """
    forms = [form for form in summary if form != "all"]
    figure, axes = panels(len(forms), width=4.2, height=3.8)
    for axis, form in zip(axes, forms, strict=True):
        own = curve[(curve.form == form) & (curve.way == "together")]
        path = own.groupby("level")[["diversity", "ndcg_10"]].mean()
        axis.plot(path.diversity, path.ndcg_10, color="gray", marker=".", label="student, diversity 0.05 to 0.95")
        for system, metrics in summary[form].items():
            x, y = metrics["diversity"], metrics["ndcg_10"]
            error = {"xerr": whiskers(x), "yerr": whiskers(y), "color": COLORS[system], "label": SYSTEMS[system]}
            axis.errorbar(x["mean"], y["mean"], fmt="o", **error)
        axis.set(xlabel="diversity of the first ten [1 - mean cosine]", ylabel="nDCG@10", title=f"{form} intents")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def whiskers(value: dict[str, float]) -> list[list[float]]:
    """The interval of a mean as the lengths below and above it, shape (2, 1), as matplotlib draws it."""
    return [[value["mean"] - value["low"]], [value["high"] - value["mean"]]]


def lever(curve: pd.DataFrame) -> Figure:
    """Diversity of the found items as the lever rises, one line per way; bands are 95% intervals over intents."""
    figure, (axis,) = panels(1, width=7)
    named = curve.assign(moved=curve.way.map(WAYS))
    seaborn.lineplot(named, x="level", y="diversity", hue="moved", style="moved", markers=True, seed=0, ax=axis)
    axis.set(xlabel="diversity asked for [level]", ylabel="diversity of the first ten [1 - mean cosine]")
    axis.legend(title="what moves", frameon=False, fontsize=9)
    return figure


def gains(differences: dict[str, Any], names: Sequence[str], base: str) -> Figure:
    """What each system gains over `base`, with 95% intervals, one panel per metric."""
    forms = [form for form in differences if form != "all"]
    systems = list(differences[forms[0]])
    names = [name for name in names if name in differences[forms[0]][systems[0]]]
    figure, axes = panels(len(names), width=3.6, height=0.32 * len(forms) * len(systems) + 1.4, sharey=True)
    labels = [f"{SYSTEMS[system]}, {form}" for form in forms for system in systems]
    for axis, name in zip(axes, names, strict=True):
        cells = [(system, differences[form][system][name]) for form in forms for system in systems]
        for row, (system, cell) in enumerate(cells):
            axis.errorbar(cell["mean"], row, xerr=whiskers(cell), fmt="o", capsize=3, color=COLORS[system])
        axis.axvline(0, color="gray", linestyle="--", linewidth=1)
        axis.set(xlabel=f"difference to {SYSTEMS[base]}", title=name, yticks=range(len(labels)), yticklabels=labels)
    axes[0].invert_yaxis()
    return figure


def results_page(catalogue: pd.DataFrame, intent: str, places: Sequence[int], prompts: Sequence[str]) -> str:
    """What was found, as HTML: the intent, its prompts, and thumbnails with titles. Every text is escaped."""
    shown = catalogue.iloc[list(places)]
    items = [{"title": item.title, "picture": data_url(item.image)} for item in shown.itertuples()]
    return template("found.html").render(intent=intent, prompts=prompts, items=items)


def data_url(path: str) -> str:
    """A thumbnail as a data URL; encoded again, so that nothing else in the file reaches the page."""
    buffer = io.BytesIO()
    thumbnail(path, 300).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


class Finder:
    """Answers intents and images with pages of results."""

    def __init__(self, finder: PromptSearch, catalogue: pd.DataFrame, describe: Describer):
        self.finder, self.catalogue, self.describe = finder, catalogue, describe

    def page(self, intent: str, **asked: Any) -> str:
        """Results of an intent under a command, as HTML; a request for one where the intent is empty."""
        intent = clean_intent(intent)
        if not intent:
            return sentence("Type an intent, or choose an image.")
        ranked, prompts = self.finder.find([intent], SHOWN, **asked)
        return results_page(self.catalogue, intent, ranked[0], prompts[0])

    def intent_of(self, name: str, content: bytes) -> str:
        """The intent of an uploaded image. Raises: BadImage."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"image{Path(name).suffix}"
            file.write_bytes(content)
            return intent_of(file, self.describe)


class SearchPanel:
    """A Finder with its controls, in JupyterLab or in Voila; `box` is shown, and opens with the results of an intent.

    The kernel stays free: one search at a time runs in a thread, and only the event loop touches the widgets.
    """

    def __init__(self, finder: Finder, intent: str):
        self.finder, self._work = finder, None
        self.text = w.Text(intent, description="intent")
        self.upload = w.FileUpload(accept="image/*", description="image")
        self.sliders = {name: slider(name, finder.finder) for name in finder.finder.writer.codec.rewards}
        self.button, self.shown = w.Button(description="search", button_style="primary"), w.HTML(finder.page(intent))
        self.button.on_click(lambda _: self._begin(self._search))
        self.upload.observe(lambda change: self._begin(partial(self._search_image, change["new"])), "value")
        controls = w.HBox(list(self.sliders.values()), layout=w.Layout(flex_flow="row wrap"))
        self.box = w.VBox([w.HBox([self.text, self.upload, self.button]), controls, self.shown])

    def _begin(self, work: Callable[[], Any]) -> None:
        """Start a search, unless one is under way."""
        if self._work is None or self._work.done():
            self._work = asyncio.get_running_loop().create_task(self._watched(work))

    async def _watched(self, work: Callable[[], Any]) -> None:
        self.button.disabled = self.upload.disabled = True
        self.button.description = "searching ..."
        try:
            await work()
        except BadImage as reason:
            self.shown.value = sentence(f"This image cannot be used: {reason}.", "wrong")
        except Exception as error:  # nobody awaits this task, so an error that is not shown would be lost
            self.shown.value = sentence(f"{type(error).__name__}: {error}", "wrong")
        finally:
            self.button.disabled = self.upload.disabled = False
            self.button.description = "search"

    async def _search(self) -> None:
        asked = {name: None if control.value == OPEN else control.value for name, control in self.sliders.items()}
        self.shown.value = await asyncio.to_thread(self.finder.page, self.text.value, **asked)

    async def _search_image(self, files: Sequence[dict[str, Any]]) -> None:
        for file in files:
            self.text.value = await asyncio.to_thread(self.finder.intent_of, file["name"], bytes(file["content"]))
            await self._search()


def slider(reward: str, finder: PromptSearch) -> w.SelectionSlider:
    """A slider over what can be asked of a reward, set to what the settings ask for; its first stop leaves it open."""
    stops = range(3, finder.writer.codec.longest + 1) if reward == "length" else [k / 20 for k in range(21)]
    asked = finder.settings.asked().get(reward)
    start = OPEN if asked is None else min(stops, key=lambda stop: abs(stop - asked))
    options = [(OPEN, OPEN), *((str(stop), stop) for stop in stops)]
    return w.SelectionSlider(options=options, value=start, description=reward, continuous_update=False)
