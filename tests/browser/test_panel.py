"""Notebook 05 in a real JupyterLab: every control is used, and what the cards say is computed again."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCREENSHOTS = Path("/nowhere")


@pytest.fixture(scope="module")
def page(chromium, lab: str, tmp_path_factory: pytest.TempPathFactory):
    """The notebook with all cells run."""
    page = chromium.new_page(viewport={"width": 1400, "height": 1000})
    page.goto(lab)
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.get_by_role("button", name="Generate").wait_for(timeout=90_000)
    page.get_by_text("sweeps.parquet").last.wait_for(timeout=90_000)
    return page


def press(page, button: str) -> str:
    """Press a button of the panel, wait until its work is done, and return the status line."""
    page.get_by_role("button", name=button, exact=True).click()
    page.wait_for_function("document.querySelector('.jp-Notebook button.mod-primary').disabled === false")
    return page.locator("[role=status]").last.inner_text()


def test_generate(page):
    pass
