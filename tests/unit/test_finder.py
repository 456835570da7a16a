"""The page to search on: the panel's controls and results, images as intents, and no text that runs as code."""

from __future__ import annotations

import asyncio
import html
import io
import re
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hostile import HOSTILE
from PIL import Image

from udrl_utils.commands import CommandCodec
from udrl_utils.figures import save
from udrl_utils.search import page
from udrl_utils.search.catalogue import as_table
from udrl_utils.search.images import plain, xmp
from udrl_utils.search.page import Finder, SearchPanel
from udrl_utils.search.retrieval import PromptSearch, Search, Space
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
    search = Search([Space(letters, letters(titles))])
    settings = resolve(SearchSettings, smoke | {"search_tasks": ["related_search"]})
    return Finder(PromptSearch(search, Writer(), settings), as_table(rows), plain)


def in_a_loop(work: Coroutine) -> None:
    """Run to the end in an event loop of its own, whatever loop this thread may already be in."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


def first_title(shown: str) -> str:
    return re.search(r"<figcaption[^>]*>([^<]*)", shown)[1]


@pytest.fixture
def panel(finder: Finder) -> SearchPanel:
    return SearchPanel(finder, "a koi")


def upload(panel: SearchPanel, name: str, content: bytes) -> None:
    """Choose a file, and wait for its results."""
    facts = {"name": name, "type": "image/jpeg", "size": 1, "last_modified": datetime(2024, 1, 1)}

    async def choose() -> None:
        panel.upload.value = ({**facts, "content": memoryview(content)},)
        await panel._work

    in_a_loop(choose())


def test_the_panel_opens_with_the_results_of_an_intent(panel: SearchPanel, finder: Finder) -> None:
    assert panel.shown.value == finder.page("a koi")
    assert "koi pond" in first_title(panel.shown.value), "the nearest comes first"


def test_sliders_are_the_command(panel: SearchPanel, finder: Finder) -> None:
    async def search() -> None:
        panel.button.click()
        await panel._work

    assert set(panel.sliders) == {"length", *NAMES} and panel.sliders["relevance"].value == "open"
    panel.text.value, panel.sliders["diversity"].value, panel.sliders["length"].value = "foxes in dens", 0.9, "open"
    in_a_loop(search())
    assert "fox den" in first_title(panel.shown.value)
    assert finder.finder.writer.command.asked == {"diversity": 0.9}
    assert not panel.button.disabled


def test_the_kernel_answers_while_it_searches_and_errors_are_shown(panel: SearchPanel, finder: Finder) -> None:
    answered, workers = threading.Event(), []

    def slow(intent: str, **asked) -> str:
        workers.append(threading.current_thread())
        assert answered.wait(5), "the event loop is blocked"
        raise ValueError(SCRIPT)

    async def search() -> None:
        panel.button.click()
        await asyncio.sleep(0.05)  # the loop is free, as it must be for the widgets to react
        panel.button.click()
        answered.set()
        await panel._work

    finder.page = slow
    in_a_loop(search())
    assert len(workers) == 1, "one search at a time"
    assert "ValueError" in panel.shown.value and "<script" not in panel.shown.value


@pytest.mark.parametrize("text", HOSTILE)
def test_no_title_prompt_or_intent_runs_as_code(text: str) -> None:
    rows = [{"id": "1", "kind": "image", "title": text, "keywords": text, "image": ""}]
    shown = page.results_page(as_table(rows), text, [0], [text])
    tags = {"p", "b", "details", "summary", "ul", "li", "div", "figure", "img", "figcaption"}
    assert set(re.findall(r"<(\w+)", shown)) == tags
    assert len(shown) < 20_000


def test_no_title_is_read_as_a_formula(finder: Finder, tmp_path: Path) -> None:
    save(page.grids(finder.catalogue, {"$$\\frac{1}{$": [0]}, 2), tmp_path, "sheet")


def test_what_is_typed_is_escaped(finder: Finder) -> None:
    shown = finder.page(f"quiz {SCRIPT}")
    assert "<script" not in shown and shown.count(html.escape(SCRIPT)) >= 3


def test_an_image_is_an_intent(panel: SearchPanel) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40), "red").save(buffer, "JPEG", xmp=xmp("Fox den", []))
    upload(panel, "photo.jpg", buffer.getvalue())
    assert panel.text.value == "fox den wide in red"
    assert "fox den" in panel.shown.value
    upload(panel, f"{Path(SCRIPT).name}.jpg", b"no image")
    assert "This image cannot be used: not an image of a known format." in panel.shown.value


def test_an_empty_intent_is_asked_for(finder: Finder) -> None:
    assert "Type an intent, or choose an image." in finder.page(" . ")
