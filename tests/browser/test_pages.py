"""Hostile teacher replies through all notebooks and the report, looked at in a browser without a network."""

from __future__ import annotations

from pathlib import Path

import nbconvert
import pytest

from udrl_utils.settings import NOTEBOOKS

pytestmark = pytest.mark.slow
PAGES = [*NOTEBOOKS.values(), "report"]


@pytest.fixture(scope="module")
def pages(chromium, hostile_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the exported HTML of every executed notebook, and the report."""
    folder = tmp_path_factory.mktemp("pages")
    for name in NOTEBOOKS.values():
        html, _ = nbconvert.HTMLExporter().from_filename(str(hostile_run / "notebooks" / f"{name}.ipynb"))
        (folder / f"{name}.html").write_text(html, encoding="utf-8")
    (folder / "report.html").write_text((hostile_run / "report.html").read_text(encoding="utf-8"), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [1400, 800])
def test_a_page_shows_its_figures_offline_and_runs_nothing(chromium, pages: Path, name: str, width: int) -> None:
    context = chromium.new_context(offline=True, viewport={"width": width, "height": 900})
    page, dialogs = context.new_page(), []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.goto((pages / f"{name}.html").as_uri())
    figures = page.locator("img")
    assert figures.count() >= 1
    for figure in figures.all():
        assert figure.evaluate("image => image.complete && image.naturalWidth > 40")
    assert page.evaluate("window.hacked === undefined") and not dialogs
    assert page.url.endswith(f"{name}.html")
    assert page.locator("iframe, form, base, meta[http-equiv=refresh], plaintext").count() == 0
    last = page.locator("h2").last
    last.scroll_into_view_if_needed()
    assert last.is_visible() and last.inner_text().startswith(("Done", "Settings"))
    assert page.locator("body").bounding_box()["width"] <= width
    context.close()


def test_the_report_leads_to_every_section_and_prints(chromium, pages: Path, tmp_path: Path) -> None:
    context = chromium.new_context(offline=True)
    page = context.new_page()
    page.goto((pages / "report.html").as_uri())
    links = page.locator("nav a")
    assert links.count() >= 6
    for link in links.all():
        assert page.locator(link.get_attribute("href").replace("#", "[id='") + "']").count() == 1
    for image in page.locator(".chapter .output_png img").all():
        assert image.get_attribute("alt")
        assert image.evaluate("image => image.naturalWidth >= 1.9 * image.width"), "twice the pixels"
    page.set_viewport_size({"width": 800, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 800, "only tables scroll sideways"
    page.pdf(path=tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").stat().st_size > 100_000
    context.close()
