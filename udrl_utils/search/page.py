"""What people see of search: the catalogue and ranked places go in, figures, HTML and a widget come out.

Titles and intents come from strangers: they are escaped in HTML and never read as formulas in figures.
"""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any

import ipywidgets as w
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from udrl_utils.figures import style
from udrl_utils.search.images import BadImage, Describer, open_image
from udrl_utils.search.retrieval import PromptSearch
from udrl_utils.text import clean_intent, words
from udrl_utils.views import render, sentence, visible

SHOWN = 12  # items on the widget's page
OPEN = "open"  # the stop of a slider that asks for nothing


def thumbnail(path: str, size: int = 160) -> Image.Image:
    """An item's picture with sides of at most `size` pixels; a gray square where it has none or cannot be opened."""
    image = Image.new("RGB", (size, size), "#eeeeee")
    if path:
        with suppress(BadImage):
            image = open_image(Path(path))[0]
    image.thumbnail((size, size))
    return image


def grids(catalogue: pd.DataFrame, ranked: dict[str, Sequence[int]], columns: int = 8) -> Figure:
    """One row of thumbnails per ranked list, under its name; the best item is on the left."""
    style()
    figure = plt.figure(figsize=(1.25 * columns, 1.6 * len(ranked)), layout="constrained")
    parts = figure.subfigures(len(ranked), squeeze=False)[:, 0]
    for part, (name, places) in zip(parts, ranked.items(), strict=True):
        part.suptitle(visible(name, 100), x=0.01, ha="left", fontsize=9, parse_math=False)
        for axis, place in zip_longest(part.subplots(1, columns), places[:columns]):
            axis.set_axis_off()
            if place is not None:
                axis.imshow(thumbnail(catalogue.image.iloc[place]))
    return figure


def results_page(catalogue: pd.DataFrame, intent: str, places: Sequence[int], prompts: Sequence[str]) -> str:
    """What was found, as HTML: the intent, its prompts, and thumbnails with titles. Every text is escaped."""
    shown = catalogue.iloc[list(places)]
    items = [{"title": item.title, "picture": data_url(item.image)} for item in shown.itertuples()]
    return render("found.html", intent=intent, prompts=prompts, items=items)


def data_url(path: str) -> str:
    """A thumbnail as a data URL; encoded again, so that nothing else in the file reaches the page."""
    buffer = io.BytesIO()
    thumbnail(path, 300).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


class SearchPanel:
    """An intent or an image is searched under a command, in JupyterLab or in Voila; `box` is shown.

    The sliders of the rewards are the student's command. `variety` does not reach the student: it re-ranks the page.
    """

    def __init__(self, finder: PromptSearch, catalogue: pd.DataFrame, describe: Describer, intent: str):
        self.finder, self.catalogue, self.describe = finder, catalogue, describe
        self.text = w.Text(intent, description="intent")
        self.upload = w.FileUpload(accept="image/*", description="image")
        self.sliders = {name: slider(name, finder) for name in finder.writer.codec.rewards}
        self.variety = w.FloatSlider(0, min=0, max=1, step=0.05, description="variety")
        self.button, self.shown = w.Button(description="search", button_style="primary"), w.HTML(self.page(intent))
        self.button.on_click(lambda _: self.search())
        self.upload.observe(lambda change: self.take(change["new"]), "value")
        controls = w.HBox([*self.sliders.values(), self.variety], layout=w.Layout(flex_flow="row wrap"))
        self.box = w.VBox([w.HBox([self.text, self.upload, self.button]), controls, self.shown])

    def page(self, intent: str, variety: float = 0.0, **asked: Any) -> str:
        """Results of an intent under a command, as HTML; a request for one where the intent is empty."""
        intent = clean_intent(intent)
        if not words(intent):
            return sentence("Type an intent, or choose an image.")
        ranked, prompts = self.finder.find([intent], 1 - variety / 2, **asked)
        [usable] = self.finder.usable([intent], prompts)
        written = [prompt for some in usable.values() for prompt in some]
        return results_page(self.catalogue, intent, ranked[0][:SHOWN], written)

    def search(self) -> None:
        """Show the results of the typed intent; an error is shown in their place, since a callback cannot raise it."""
        asked = {name: None if control.value == OPEN else control.value for name, control in self.sliders.items()}
        try:
            self.shown.value = self.page(self.text.value, self.variety.value, **asked)
        except Exception as error:
            self.shown.value = sentence(f"{type(error).__name__}: {error}", "wrong")

    def take(self, files: Sequence[dict[str, Any]]) -> None:
        """Search for what an uploaded image shows."""
        for file in files:
            try:
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / f"image{Path(file['name']).suffix}"
                    path.write_bytes(file["content"])
                    self.text.value = self.describe(*open_image(path))
                self.search()
            except BadImage as reason:
                self.shown.value = sentence(f"This image cannot be used: {reason}.", "wrong")


def slider(reward: str, finder: PromptSearch) -> w.SelectionSlider:
    """A slider over what can be asked of a reward, set to what the settings ask for; its first stop leaves it open."""
    stops = range(3, finder.writer.codec.longest + 1) if reward == "length" else [k / 20 for k in range(21)]
    asked = finder.settings.asked().get(reward)
    start = OPEN if asked is None else min(stops, key=lambda stop: abs(stop - asked))
    options = [(OPEN, OPEN), *((str(stop), stop) for stop in stops)]
    return w.SelectionSlider(options=options, value=start, description=reward, continuous_update=False)
