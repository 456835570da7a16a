"""Notebook 06 on the smoke run: its contract files, its page, and a catalogue of one's own."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from udrl_utils.search import measures


@pytest.fixture(scope="module")
def metrics(smoke_run: Path) -> dict:
    return json.loads((smoke_run / "06_search" / "metrics.json").read_text())


def test_metrics_hold_every_system_with_its_interval(metrics: dict) -> None:
    expanded = {
        f"{name} + {by}" for name in measures.RETRIEVERS for by in ("feedback", "student", "student, no command")
    }
    systems = {*measures.RETRIEVERS, "hybrid, MMR", *expanded}  # a recorded teacher writes for no new intent
    assert set(metrics["search"]["all"]) == set(metrics["coverage"]) == systems
    for found in metrics["search"]["all"].values():
        assert set(found) == {"ndcg_10", "recall_50", "mrr", "diversity", "null"}
        assert all(value["low"] <= value["mean"] <= value["high"] for value in found.values())
    assert {row["system"] for row in metrics["gains"]} == systems - {*measures.RETRIEVERS}
    assert all(0 <= row["p"] <= 1 for row in metrics["gains"])
    assert set(metrics["levers"]["spearman"]) == {"command", "control", "floor", "weight", "re-ranking"}
    assert len(metrics["levers"]["levels"]) == 50
    assert set(metrics["recommendation"]) == {"items seen", "items seen + student"}
    assert 0 < metrics["latency"]["p50"] <= metrics["latency"]["p95"]


def test_results_agree_with_metrics(smoke_run: Path, metrics: dict) -> None:
    results = pd.read_parquet(smoke_run / "06_search" / "results.parquet")
    own = results[results.system == "hybrid + student"]
    assert math.isclose(own.ndcg_10.mean(), metrics["search"]["all"]["hybrid + student"]["ndcg_10"]["mean"])


def test_figures_are_written(smoke_run: Path) -> None:
    written = {file.stem for file in (smoke_run / "06_search" / "figures").glob("*.png")}
    assert {"contact_sheet", "retrievers", "image_as_intent", "gains", "levers"} <= written


def test_the_page_without_a_kernel_shows_what_is_found(smoke_run: Path) -> None:
    notebook = nbformat.read(smoke_run / "notebooks" / "06_search_and_recommendation.ipynb", 4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pages = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert sum(page.count("<figcaption") for page in pages) == 12


def test_a_catalogue_of_ones_own_runs_without_judgements(smoke_run: Path, tmp_path: Path) -> None:
    left = shutil.ignore_patterns("06_search", "checkpoints")
    shutil.copytree(smoke_run, tmp_path / "outputs" / "smoke", ignore=left)
    rows = [
        ("koi", "koi pond", "koi, <b>water</b>"),
        ("fox", "<img src=x>", "fox"),
        ("owl", "owl 🦉", ""),
        ("owl", "", ""),
    ]
    pd.DataFrame(rows, columns=["id", "title", "keywords"]).to_csv(tmp_path / "items.csv", index=False)
    command = ["run", "--preset", "smoke", "--from", "6", "--set", f"catalog={tmp_path / 'items.csv'}"]
    environment = {**os.environ, "UDRL_OUTPUTS": str(tmp_path / "outputs"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "udrl_utils.cli", *command]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "outputs" / "smoke" / "06_search" / "metrics.json").read_text())
    assert found["catalog"] == {"items": 3, "left_out": {"neither title, keywords nor image": 1}}
    assert set(found["search"]["all"]["hybrid + student"]) == {"diversity"}
    assert "recommendation" not in found, "no visit is invented"
