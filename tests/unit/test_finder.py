"""The page to search on: controls and results of the widget, images as intents, and no text that runs."""

from __future__ import annotations

import html
import io
import re
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udrl_utils.commands import CommandCodec
from udrl_utils.search.catalogue import as_table
from udrl_utils.search.drawn import xmp
from udrl_utils.search.images import Plain
from udrl_utils.search.page import Finder
from udrl_utils.search.retrieval import Index, PromptSearch, Search, Space
from udrl_utils.settings import SearchSettings, resolve

NAMES = ["relevance", "diversity"]
CODEC = CommandCodec(10, 40, {"related_search": {name: [] for name in NAMES}})
SCRIPT = "<script>alert(1)</script>"


class Writer:
    """Repeats the intent, and remembers its last command."""

    knows, codec = ("seed", "guidance"), CODEC

    def generate(self, intents, command, n=1, seed=0, guidance=1.0):
        self.command = command[0]
        return [[f"{intent} {k}" for k in range(n)] for intent in intents]


def letters(texts: list[str]) -> np.ndarray:
    counts = np.array([[text.count(chr(k)) + 0.01 for k in range(97, 123)] for text in texts], dtype=np.float32)
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


@pytest.fixture
def finder(smoke: dict) -> Finder:
    titles = ["koi pond", "fox den", f"quiz {SCRIPT}"]
    rows = [{"id": t, "kind": "image", "title": t, "keywords": "", "image": ""} for t in titles]
    search = Search([Space(letters, Index(letters(titles)))])
    settings = resolve(SearchSettings, smoke | {"search_tasks": ["related_search"]})
    return Finder(PromptSearch(search, Writer(), settings), as_table(rows), Plain())


def parts(widget) -> tuple:
    """Text, upload, button, sliders by name, and the results of the widget."""
    (text, upload, button), controls, shown = widget.children[0].children, widget.children[1], widget.children[2]
    return text, upload, button, {slider.description: slider for slider in controls.children}, shown


def test_sliders_are_the_command(finder: Finder) -> None:
    text, _, button, sliders, shown = parts(finder.widget("a koi"))
    assert set(sliders) == {"length", *NAMES} and sliders["relevance"].value == "open"
    assert "koi pond" in re.search(r"<figcaption[^>]*>([^<]*)", shown.value)[1], "the nearest comes first"
    text.value, sliders["diversity"].value, sliders["length"].value = "foxes in dens", 0.9, "open"
    button.click()
    assert "fox den" in re.search(r"<figcaption[^>]*>([^<]*)", shown.value)[1]
    assert finder.finder.writer.command.asked == {"diversity": 0.9}


def test_what_is_shown_is_the_static_page(finder: Finder) -> None:
    assert parts(finder.widget("a koi"))[-1].value == finder.page("a koi")


def test_nothing_that_was_typed_found_or_written_runs(finder: Finder) -> None:
    page = finder.page(f"quiz {SCRIPT}")
    assert "<script" not in page and page.count(html.escape(SCRIPT)) >= 3


def test_an_image_is_an_intent(finder: Finder) -> None:
    text, upload, _, _, shown = parts(finder.widget("a koi"))
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40), "red").save(buffer, "JPEG", xmp=xmp("Fox den", []))
    file = {"name": "photo.jpg", "type": "image/jpeg", "size": 1, "last_modified": datetime(2024, 1, 1)}
    upload.value = ({**file, "content": memoryview(buffer.getvalue())},)
    assert text.value == "fox den wide in red"
    assert "fox den" in shown.value
    upload.value = ({**file, "name": f"{Path(SCRIPT).name}.jpg", "content": memoryview(b"no image")},)
    assert "This image cannot be used: not an image of a known format." in shown.value


def test_an_empty_intent_is_told_so(finder: Finder) -> None:
    assert finder.page(" . ") == "<p>Type an intent, or choose an image.</p>"
