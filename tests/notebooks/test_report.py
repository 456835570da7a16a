"""The page of a run and the page of two: what is there is shown, nothing in a run folder is executed."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from hostile import HOSTILE
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from typer.testing import CliRunner

from udrl_utils import cli, report
from udrl_utils.errors import RunError
from udrl_utils.runs import RunFolder, write_json
from udrl_utils.settings import NOTEBOOKS


@pytest.fixture
def copy(smoke_run: Path, tmp_path: Path) -> Path:
    """A copy of the smoke run, to change."""
    return Path(shutil.copytree(smoke_run, tmp_path / "copy"))


def udrl(*arguments: object):
    return CliRunner().invoke(cli.app, [*map(str, arguments)])


class Page(HTMLParser):
    """Elements and attributes of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def each(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def assert_harmless(page: str) -> None:
    """No element or attribute of the page runs, loads or sends anything."""
    found = Page(page)
    assert not {"script", "iframe", "form", "base", "object", "embed", "svg", "link"} & {
        tag for tag, _ in found.elements
    }
    for tag, attributes in found.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert (attributes.get("href") or "#").startswith(("#", "https://"))
        source = attributes.get("src", "data:image/png;base64,") or ""
        assert source.startswith(("data:image/png;base64,", "data:image/jpeg;base64,"))


def test_the_page_is_a_summary_and_the_executed_chapters_without_their_code(smoke_run: Path) -> None:
    page = (smoke_run / "report.html").read_text()
    order = [
        page.index(f'<section id="{name}"') for name in ("04_analysis", "01_teacher_distillation", "03_udrl_training")
    ]
    assert page.index('id="summary"') < order[0] < order[1] < order[2]
    for text in ("relevance at the best command", "Calibration: commanded against achieved", "plain SFT, no prefixes"):
        assert text in page
    assert "import pandas" not in page and "resolve(" not in page
    assert_harmless(page)
    figures = [image for image in Page(page).each("img") if (image["src"] or "").startswith("data:image/png")]
    assert len(figures) >= 12 and all(figure["alt"] and figure["width"] for figure in figures)


def test_a_chapter_that_did_not_run_to_its_end_is_left_out(copy: Path) -> None:
    file = copy / "notebooks" / f"{NOTEBOOKS['02_annotated']}.ipynb"
    notebook = nbformat.read(file, 4)
    notebook.metadata.papermill["exception"] = True
    nbformat.write(notebook, file)
    page = report.build(RunFolder(copy)).read_text()
    assert file.stem not in [section["id"] for section in Page(page).each("section") if "id" in section]
    file.write_text("{")
    with pytest.raises(RunError, match="is not a notebook"):
        report.build(RunFolder(copy))


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_a_hostile_notebook_runs_nothing(number: int, tmp_path: Path) -> None:
    text, file = HOSTILE[number][:3000], tmp_path / "hostile.ipynb"
    kinds = ("text/html", "text/markdown", "text/plain", "text/latex", "image/svg+xml", "application/javascript")
    outputs = [new_output("display_data", {kind: text}) for kind in kinds]
    outputs += [new_output("stream", text=text), new_output("display_data", {"image/png": f'"{text}'})]
    cells = [new_markdown_cell(text), new_code_cell(text, outputs=outputs)]
    executed = {"papermill": {"end_time": "2026-01-01", "exception": None}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=executed), file)
    assert_harmless(report.chapter(file))


def test_a_hostile_run_folder_is_read_as_data(copy: Path) -> None:
    (copy / "02_annotated" / "_rewards.py").write_text(f"open({str(copy / 'executed')!r}, 'w')")
    record = json.loads((copy / "run.json").read_text())
    record["stages"]["03_student"]["settings"]["base"] = "<script>window.hacked=1</script>"
    write_json(copy / "run.json", record)
    metrics = json.loads((copy / "04_analysis" / "metrics.json").read_text())
    for part in ("systems", "relative_to_teacher"):
        metrics[part]["<img src=x onerror=window.hacked=1>"] = metrics[part]["student_best"]
    write_json(copy / "04_analysis" / "metrics.json", metrics)
    for page in (report.build(RunFolder(copy)), report.compare(RunFolder(copy), RunFolder(copy))):
        assert_harmless(page.read_text())
    assert "&lt;script&gt;window.hacked=1" in (copy / "report.html").read_text()
    assert not (copy / "executed").exists()


def test_two_runs_side_by_side(smoke_run: Path, copy: Path) -> None:
    record = json.loads((copy / "run.json").read_text())
    record["stages"]["03_student"]["settings"]["epochs"] = 7
    write_json(copy / "run.json", record)
    metrics = json.loads((copy / "04_analysis" / "metrics.json").read_text())
    metrics["relative_to_teacher"]["student_best"]["relevance"] = {"mean": 0.875, "low": 0.75, "high": 1}
    write_json(copy / "04_analysis" / "metrics.json", metrics)
    result = udrl("report", copy, smoke_run)
    assert result.exit_code == 0, result.output
    found = report.differences(RunFolder(copy), RunFolder(smoke_run))
    assert found.to_dict("index") == {"03_student epochs": {"copy": "7", "smoke": "1"}}
    page = (copy / "compare_smoke.html").read_text()
    for shown in (result.stdout, page):
        assert "87.5% [75.0%, 100.0%]" in shown and "03_student epochs" in shown
    assert "https://" not in page


def test_runs_that_cannot_be_compared_cost_one_line(smoke_run: Path, outputs: Path) -> None:
    result = udrl("report", smoke_run, "nowhere")
    assert result.exit_code == 2
    assert "run='nowhere' has no metrics yet" in result.stderr and result.stderr.count("\n") == 1
    with pytest.raises(RunError, match="nowhere"):
        report.compare(RunFolder("nowhere"), RunFolder(smoke_run))


def test_a_report_by_name_and_by_folder(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDRL_OUTPUTS", str(copy.parent))
    for named in ("copy", copy):
        (copy / "report.html").unlink()
        assert udrl("report", named).exit_code == 0
        assert (copy / "report.html").stat().st_size > 100_000
