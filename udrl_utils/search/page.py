"""What people see of search: galleries of found items and the search widget."""

from __future__ import annotations

import base64
import html
import io
import tempfile
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas

from udrl_utils.figures import panels, style
from udrl_utils.search.images import BadImage, Describer, intent_of
from udrl_utils.search.retrieval import PromptSearch
from udrl_utils.tasks import clean_intent
from udrl_utils.views import template

if TYPE_CHECKING:
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

    from udrl_utils.search.images import BadImage, open_image

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


SHOWN = 12
OPEN = "open"  # the stop of a slider that asks for nothing


def results_page(catalog: pandas.DataFrame, intent: str, places: Sequence[int], prompts: Sequence[str]) -> str:
    """What was found, as HTML: the intent, its prompts, and thumbnails with titles. Every text is escaped."""
    shown = catalog.iloc[list(places)]
    items = [{"title": item.title, "picture": data_url(item.image)} for item in shown.itertuples()]
    return template("found.html").render(intent=intent, prompts=prompts, items=items)


def data_url(path: str) -> str:
    """A thumbnail as a data URL; drawn anew, so that nothing of the file itself reaches the page."""
    buffer = io.BytesIO()
    thumbnail(path, 300).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


class Finder:
    """Answers intents and images with pages of results."""

    def __init__(self, finder: PromptSearch, catalog: pandas.DataFrame, describer: Describer):
        self.finder, self.catalog, self.describer = finder, catalog, describer

    def page(self, intent: str, **asked: Any) -> str:
        """Results of an intent under a command, as HTML; a line that says so where nothing was asked."""
        intent = clean_intent(intent)
        if not intent:
            return "<p>Type an intent, or choose an image.</p>"
        ranked, prompts = self.finder.find([intent], SHOWN, **asked)
        return results_page(self.catalog, intent, ranked[0], prompts[0])

    def intent_of(self, name: str, content: bytes) -> str:
        """The intent of an uploaded image. Raises: BadImage."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"image{Path(name).suffix}"
            file.write_bytes(content)
            return intent_of(file, self.describer)

    def widget(self, intent: str) -> Any:
        """The page with its controls; opens with the results of `intent`."""
        import ipywidgets

        text = ipywidgets.Text(intent, description="intent")
        upload = ipywidgets.FileUpload(accept="image/*", description="image")
        sliders = {name: slider(name, self.finder) for name in self.finder.writer.codec.rewards}
        button, shown = ipywidgets.Button(description="search"), ipywidgets.HTML()

        def search(_: Any = None) -> None:
            asked = {name: None if control.value == OPEN else control.value for name, control in sliders.items()}
            shown.value = self.page(text.value, **asked)

        def choose(change: dict[str, Any]) -> None:
            for file in change["new"]:
                try:
                    text.value = self.intent_of(file["name"], bytes(file["content"]))
                except BadImage as reason:
                    shown.value = f"<p>This image cannot be used: {html.escape(str(reason))}.</p>"
                else:
                    search()

        button.on_click(search)
        upload.observe(choose, "value")
        search()
        controls = ipywidgets.HBox(list(sliders.values()))
        return ipywidgets.VBox([ipywidgets.HBox([text, upload, button]), controls, shown])


def slider(reward: str, finder: PromptSearch) -> Any:
    """A slider over what can be asked of a reward, at what the settings ask for; its first stop leaves it open."""
    import ipywidgets

    stops = range(3, finder.writer.codec.longest + 1) if reward == "length" else [k / 20 for k in range(21)]
    asked = finder.settings.asked().get(reward)
    at = OPEN if asked is None else min(stops, key=lambda stop: abs(stop - asked))
    options = [(OPEN, OPEN), *((str(stop), stop) for stop in stops)]
    return ipywidgets.SelectionSlider(options=options, value=at, description=reward, continuous_update=False)
