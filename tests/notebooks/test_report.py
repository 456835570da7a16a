"""The page of a run and the page of two: what is there is shown, what is not is left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from udrl_utils import cli, report
from udrl_utils.runs import RunFolder, write_json
from udrl_utils.settings import RunError


@pytest.fixture
def copy(smoke_run: Path, tmp_path: Path) -> Path:
    """A copy of the smoke run, to change."""
    return Path(shutil.copytree(smoke_run, tmp_path / "copy"))


def udrl(*arguments: object):
    return CliRunner().invoke(cli.app, [*map(str, arguments)])


def test_any_stage_with_figures_or_metrics_gets_a_section(copy: Path) -> None:
    record = json.loads((copy / "run.json").read_text())
    assert 'id="05_probes"' in report.build(RunFolder(copy)).read_text()
    del record["stages"]["05_probes"]
    write_json(copy / "run.json", record)
    assert 'id="05_probes"' not in report.build(RunFolder(copy)).read_text()
    speed = {"mean": 9.25, "low": 8, "high": 10}
    metrics = {
        "prompts_per_second": speed,
        "engines": {"plain": {"latency": speed, "kind": "<b>"}, "fast": {"latency": speed}},
        "rows": [{"query": "koi & pond", "rank": 1}],
    }
    write_json(copy / "03_student" / "metrics.json", metrics)
    page = report.build(RunFolder(copy)).read_text()
    for told in ("9.25 [8, 10]", "&lt;b&gt;", "koi &amp; pond", "<h3>engines</h3>", "prompts_per_second"):
        assert told in page


def test_figures_nobody_wrote_a_caption_for_go_by_their_name(copy: Path) -> None:
    figures = copy / "05_probes" / "figures"
    shutil.copy(figures / "sweeps.png", figures / "latency_by_batch.png")
    found = report.figures_of(RunFolder(copy), "05_probes")
    assert [figure["name"] for figure in found] == ["sweeps", "latency_by_batch"]
    assert found[1]["caption"] == "Latency by batch."


def test_two_runs_side_by_side(smoke_run: Path, copy: Path) -> None:
    record = json.loads((copy / "run.json").read_text())
    record["stages"]["03_student"]["settings"]["epochs"] = 7
    write_json(copy / "run.json", record)
    metrics = json.loads((copy / "04_analysis" / "metrics.json").read_text())
    metrics["calibration"]["all"]["length"]["mae"] = 0.125
    write_json(copy / "04_analysis" / "metrics.json", metrics)
    result = udrl("compare", copy, smoke_run)
    assert result.exit_code == 0, result.output
    found = report.differences(RunFolder(copy), RunFolder(smoke_run))
    assert found.to_dict("index") == {"03_student epochs": {"copy": "7", "smoke": "1"}}
    assert "0.125" in result.stdout and "03_student epochs" in result.stdout
    page = (copy / "compare_smoke.html").read_text()
    assert page.count("data:image/png;base64,") == 2 * len(report.figures_of(RunFolder(copy), "04_analysis"))
    assert "03_student epochs" in page and "https://" not in page


def test_runs_that_cannot_be_compared_cost_one_line(smoke_run: Path, outputs: Path) -> None:
    result = udrl("compare", smoke_run, "nowhere")
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
