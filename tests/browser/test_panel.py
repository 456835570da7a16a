"""Notebook 05 in a real JupyterLab: every control is used, and what the cards say is computed again."""

from __future__ import annotations

import re
from pathlib import Path

import lab
import pandas as pd
import pytest
from hostile import HOSTILE
from playwright.sync_api import expect

from udrl_utils.encoder import Encoder
from udrl_utils.rewards import annotate
from udrl_utils.runs import RunFolder
from udrl_utils.settings import AnnotationSettings

pytestmark = pytest.mark.slow
OLD = "document.querySelectorAll('[role=status]').forEach(status => { status.dataset.old = 1 })"
DONE = """document.querySelector('[role=status]:not([data-old]):not(.udrl-busy)')
    && !document.querySelector('.jp-OutputArea button.mod-primary:disabled')"""


@pytest.fixture(scope="module")
def page(chromium, hostile_run: Path, notebook_05: str):
    """Notebook 05 with all its cells run."""
    page = chromium.new_page(viewport={"width": 1400, "height": 1000})
    page.dialogs = []
    page.on("dialog", lambda dialog: (page.dialogs.append(dialog.message), dialog.dismiss()))
    lab.run_all(page, notebook_05)
    return page


def panel(page):
    return page.locator(".jp-OutputArea-output:has(button.mod-primary)").first


def press(page, button: str, tab: str | None = None) -> str:
    """Press a button of the panel, wait until its work is done, and return what the status line says."""
    if tab:
        page.get_by_role("tab", name=tab, exact=True).click()
    page.evaluate(OLD)
    panel(page).get_by_role("button", name=button, exact=True).click()
    page.wait_for_function(DONE, timeout=60_000)
    return panel(page).locator("[role=status]").inner_text()


def cards(page) -> pd.DataFrame:
    """What the visible cards say: prompt, and achieved value by reward."""
    found = []
    for card in panel(page).locator("article:visible").all():
        shown = {row.get_attribute("data-reward"): row.inner_text() for row in card.locator("tbody tr").all()}
        found.append({"prompt": card.locator(".udrl-prompt").inner_text(), **shown})
    return pd.DataFrame(found)


def heading(page) -> str:
    return panel(page).locator("section:visible").first.inner_text()


def handle(page, name: str):
    return panel(page).locator(".widget-slider", has_text=name).locator(".noUi-handle:visible")


def test_controls_have_labels(page) -> None:
    for label in ("run", "task", "intent", "test intents", "prompts"):
        assert panel(page).get_by_label(label, exact=True).is_visible(), label
    for slider in ("length [words]", "relevance [level]", "diversity [level]", "temperature"):
        assert handle(page, slider).count() == 1, slider


def test_what_the_cards_say_is_what_a_recomputation_gives(page, smoke_run: Path) -> None:
    panel(page).get_by_label("task").select_option("text_to_template")
    panel(page).get_by_label("intent", exact=True).fill("Birthday party for dinosaurs!")
    panel(page).get_by_label("prompts").fill("3")
    panel(page).get_by_label("prompts").press("Enter")
    assert re.search("3 prompts per command|beyond what was trained", press(page, "Generate", "One command"))
    shown = cards(page)
    assert len(shown) == 3
    table = shown[["prompt"]].assign(task="text_to_template", intent="Birthday party for dinosaurs!", set=0)
    embed = Encoder(RunFolder(smoke_run).settings(AnnotationSettings).encoder)
    again = annotate(table, ["length", "relevance", "diversity"], embed)
    for row, said in zip(again.itertuples(), shown.itertuples(), strict=True):
        assert f"\t{row.length:.0f} words" in said.length
        assert float(re.search(r"\((\S+)\)", said.relevance)[1]) == pytest.approx(row.relevance, abs=0.006)
        assert float(re.search(r"\((\S+)\)", said.diversity)[1]) == pytest.approx(row.diversity, abs=0.006)


def choose(page, label: str, key: str) -> None:
    """Choose from a list by keyboard: opened first, since JupyterLab takes arrow keys for its own otherwise."""
    panel(page).get_by_label(label, exact=True).focus()
    for pressed in ("Alt+ArrowDown", key, "Enter"):
        page.keyboard.press(pressed)


def test_every_control_by_keyboard(page) -> None:
    choose(page, "test intents", "ArrowDown")
    expect(panel(page).get_by_label("intent", exact=True)).not_to_have_value("Birthday party for dinosaurs!")
    handle(page, "length [words]").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    opened = panel(page).get_by_role("checkbox").nth(1)
    opened.focus()
    page.keyboard.press("Space")
    handle(page, "temperature").focus()
    page.keyboard.press("ArrowLeft")
    choose(page, "task", "r")
    page.evaluate(OLD)
    panel(page).get_by_role("button", name="Generate").focus()
    page.keyboard.press("Enter")
    page.wait_for_function(DONE)
    assert "related_search" in heading(page) and "length 20 words" in heading(page)
    assert "relevance level" not in heading(page)


def test_two_commands_stand_side_by_side(page) -> None:
    press(page, "Compare", "Two commands")
    left, right = panel(page).locator("section:visible").all()
    assert left.inner_text().startswith("A ·") and right.inner_text().startswith("B ·")
    assert abs(left.bounding_box()["y"] - right.bounding_box()["y"]) < 2
    assert len(cards(page)) == 6


def test_a_sweep_draws_its_curve(page) -> None:
    page.get_by_role("tab", name="Sweep").click()
    panel(page).get_by_label("reward").select_option("relevance")
    said = press(page, "Sweep")
    assert re.match(r"\d+ commands, \d+ prompts", said)
    drawn = panel(page).locator("img:visible")
    assert drawn.get_attribute("alt") == "commanded against achieved relevance"
    assert drawn.evaluate("image => image.naturalWidth") > 500


def test_the_history_is_exported(page, smoke_run: Path) -> None:
    said = press(page, "Export CSV", "History")
    history = pd.read_csv(smoke_run / "05_probes" / "history.csv")
    assert said.startswith(f"{history.probe.nunique()} probes in")
    assert panel(page).locator("table:visible tbody tr").count() == history.probe.nunique()
    with page.expect_download() as download:
        panel(page).get_by_role("link", name="Download history.csv").click()
    assert Path(download.value.path()).read_bytes() == (smoke_run / "05_probes" / "history.csv").read_bytes()


def test_a_bad_entry_is_a_sentence_and_the_panel_goes_on(page) -> None:
    panel(page).get_by_label("intent", exact=True).fill(" ")
    assert "the intent is empty" in press(page, "Generate", "One command")
    panel(page).get_by_label("prompts").fill("900")
    panel(page).get_by_label("prompts").press("Enter")
    expect(panel(page).get_by_label("prompts")).to_have_value("32")
    panel(page).get_by_label("prompts").fill("1")
    panel(page).get_by_label("prompts").press("Enter")
    panel(page).get_by_label("intent", exact=True).fill("koi pond")
    press(page, "Generate")
    assert len(cards(page)) == 1


def test_another_run_is_chosen_from_the_list(page) -> None:
    panel(page).get_by_label("run").select_option("hostile")
    panel(page).get_by_text("hostile is ready.").wait_for(timeout=60_000)


def test_hostile_intents_are_only_read(page) -> None:
    for text in HOSTILE:
        panel(page).get_by_label("intent", exact=True).fill(text)
        press(page, "Generate", "One command")
        assert len(cards(page)) == 1 or "the intent is empty" in panel(page).locator("[role=status]").inner_text(), text
        assert page.evaluate("window.hacked === undefined"), text
    press(page, "Export CSV", "History")
    assert page.evaluate("window.hacked === undefined") and not page.dialogs
    assert panel(page).locator("script, iframe, form, meta, base, svg, article img").count() == 0


@pytest.mark.parametrize("width", [1400, 800])
@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_it_is_readable_in_both_themes_and_on_a_narrow_page(page, theme: str, width: int, tmp_path: Path) -> None:
    page.set_viewport_size({"width": width, "height": 1000})
    page.evaluate(f"window.jupyterapp.commands.execute('apputils:change-theme', {{theme: '{theme}'}})")
    page.wait_for_function(f"document.body.dataset.jpThemeName === '{theme}'")
    page.get_by_role("tab", name="One command").click()
    panel(page).screenshot(path=tmp_path / "panel.png")
    box = panel(page).bounding_box()
    for part in panel(page).locator("article:visible, .udrl-prompt:visible, .widget-slider:visible").all():
        inside = part.bounding_box()
        assert inside["x"] >= box["x"] and inside["x"] + inside["width"] <= box["x"] + box["width"] + 1
    for part in panel(page).locator(".udrl-prompt:visible, article td:visible, .widget-label:visible").all():
        assert contrast(part) >= 4.5, part.inner_text()


def contrast(part) -> float:
    """Contrast of a text with what it stands on (WCAG 2, relative luminance)."""
    colors = part.evaluate(
        """part => {
            let under = part;
            while (getComputedStyle(under).backgroundColor === 'rgba(0, 0, 0, 0)') under = under.parentElement;
            return [getComputedStyle(part).color, getComputedStyle(under).backgroundColor];
        }"""
    )
    light, dark = sorted(map(luminance, colors), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(color: str) -> float:
    channels = [int(value) / 255 for value in re.findall(r"\d+", color)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
