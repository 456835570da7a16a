"""A page to search on: an intent is typed or an image chosen, commands are set, and what is found is shown."""

from __future__ import annotations

import base64
import html
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udrl_utils.gallery import thumbnail
from udrl_utils.images import BadImage, Describer, intent_of
from udrl_utils.retrieval import PromptSearch
from udrl_utils.tasks import clean_intent
from udrl_utils.views import template

if TYPE_CHECKING:
    import pandas

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
