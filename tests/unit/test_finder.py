"""The page to search on: the panel's controls and results, images as intents, and no text that runs as code."""

from __future__ import annotations

import html
import io
import re
from datetime import datetime
from pathlib import Path

import pytest
from hostile import HOSTILE
from pictures import xmp
from PIL import Image
from test_retrieval import letters

from udrl_utils.commands import CommandCodec
from udrl_utils.figures import save
from udrl_utils.search import page
from udrl_utils.search.catalogue import as_table
from udrl_utils.search.images import plain
from udrl_utils.search.page import SearchPanel
from udrl_utils.search.retrieval import PromptSearch, Search, Space
from udrl_utils.settings import SearchSettings, resolve

NAMES = ["relevance", "diversity"]
CODEC = CommandCodec(10, 40, {"query_rewrite": {name: [] for name in NAMES}})
SCRIPT = "<script>alert(1)</script>"


class Writer:
    """Repeats the intent, and remembers its last command."""

    codec = CODEC

    def generate(self, intents, command, n=1, seed=0):
        self.command = command[0]
        return [[f"{intent} {k}" for k in range(n)] for intent in intents]


@pytest.fixture
def panel(smoke: dict) -> SearchPanel:
    titles = ["koi pond", "fox den", f"quiz {SCRIPT}"]
    items = as_table({"id": t, "title": t, "keywords": "", "image": ""} for t in titles)
    settings = resolve(SearchSettings, smoke | {"search_command": ["diversity 0.7"], "prompt_floor": 0.0})
    finder = PromptSearch(Search(items, [Space(letters, letters(titles))]), Writer(), settings)
    return SearchPanel(finder, items, plain, "a koi")


def first_title(shown: str) -> str:
    return re.search(r"<figcaption[^>]*>([^<]*)", shown)[1]


def upload(panel: SearchPanel, name: str, content: bytes) -> None:
    """Choose a file."""
    facts = {"name": name, "type": "image/jpeg", "size": 1, "last_modified": datetime(2024, 1, 1)}
    panel.upload.value = ({**facts, "content": memoryview(content)},)


def test_the_panel_opens_with_the_results_of_an_intent(panel: SearchPanel) -> None:
    assert panel.shown.value == panel.page("a koi")
    assert "koi pond" in first_title(panel.shown.value), "the nearest comes first"


def test_sliders_are_the_command_and_variety_is_not(panel: SearchPanel) -> None:
    assert set(panel.sliders) == {"length", *NAMES} and panel.sliders["relevance"].value == "open"
    panel.text.value, panel.sliders["diversity"].value, panel.variety.value = "foxes in dens", 0.9, 0.8
    panel.button.click()
    assert "fox den" in first_title(panel.shown.value)
    assert panel.finder.writer.command.asked == {"diversity": 0.9}


def test_an_error_is_shown_as_text(panel: SearchPanel, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(intent: str, *asked: object, **more: object) -> str:
        raise ValueError(SCRIPT)

    monkeypatch.setattr(panel, "page", wrong)
    panel.button.click()
    assert "ValueError" in panel.shown.value and "<script" not in panel.shown.value


@pytest.mark.parametrize("text", HOSTILE)
def test_no_title_prompt_or_intent_runs_as_code(text: str) -> None:
    rows = [{"id": "1", "title": text, "keywords": text, "image": ""}]
    shown = page.results_page(as_table(rows), text, [0], [text])
    tags = {"p", "b", "details", "summary", "ul", "li", "div", "figure", "img", "figcaption"}
    assert set(re.findall(r"<(\w+)", shown)) == tags
    assert len(shown) < 20_000


def test_no_title_is_read_as_a_formula(panel: SearchPanel, tmp_path: Path) -> None:
    save(page.grids(panel.catalogue, {"$$\\frac{1}{$": [0]}, 2), tmp_path, "sheet")


def test_what_is_typed_is_escaped(panel: SearchPanel) -> None:
    shown = panel.page(f"quiz {SCRIPT}")
    assert "<script" not in shown and shown.count(html.escape(SCRIPT)) >= 3


def test_an_image_is_an_intent(panel: SearchPanel) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40), "red").save(buffer, "JPEG", xmp=xmp("Fox den", []))
    upload(panel, "photo.jpg", buffer.getvalue())
    assert panel.text.value == "fox den"
    assert "fox den" in panel.shown.value
    upload(panel, f"{Path(SCRIPT).name}.jpg", b"no image")
    assert "This image cannot be used: not an image of a known format." in panel.shown.value


def test_an_empty_intent_is_asked_for(panel: SearchPanel) -> None:
    assert "Type an intent, or choose an image." in panel.page(" . ")
