"""Notebook 06 on the smoke run: its contract files, its page, and a catalogue of one's own."""

from __future__ import annotations

import html
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from udrl_utils.rewards import Encoder
from udrl_utils.runs import RunFolder
from udrl_utils.search import study
from udrl_utils.search.catalogue import vectors_of
from udrl_utils.search.images import plain
from udrl_utils.search.page import Finder
from udrl_utils.search.retrieval import PromptSearch, Search, Space
from udrl_utils.settings import STAGES, SearchSettings
from udrl_utils.student import Student


@pytest.fixture(scope="module")
def finder(smoke_run: Path) -> tuple[PromptSearch, pd.DataFrame]:
    items = pd.read_parquet(smoke_run / "06_search" / "catalog.parquet")
    embed, student = Encoder("minilm"), Student.load(smoke_run / "03_student")
    settings = RunFolder(smoke_run).settings(SearchSettings)
    return PromptSearch(Search([Space(embed, vectors_of(items, embed))]), student, settings), items


def test_metrics_hold_every_system_with_its_interval(smoke_run: Path) -> None:
    metrics = json.loads((smoke_run / "06_search" / "metrics.json").read_text())
    systems = {"raw", "mmr", "student_open", "student"}  # a recorded teacher writes for no new intent
    assert set(metrics["search"]) == {"short", "long", "vague", "all"}
    for form in metrics["search"].values():
        assert set(form) == systems
        for found in form.values():
            assert set(found) == set(study.METRICS)
            assert all(value["low"] <= value["mean"] <= value["high"] for value in found.values())
    assert set(metrics["coverage"]) == systems and set(metrics["gains"]["all"]) == systems - {"raw"}
    assert len(metrics["lever"]["levels"]) == 10
    assert set(metrics["lever_parts"]) == set(study.WAYS)
    assert metrics["lever_parts"]["together"]["levels"] == metrics["lever"]["levels"]
    assert all({"diversity", "ndcg_10", "recall_50"} < set(found) for found in metrics["lever_parts"].values())
    assert "novelty" in metrics["recommendation"]["all"]["student"]
    assert 0 < metrics["latency"]["p50"] <= metrics["latency"]["p95"]


def test_results_agree_with_metrics(smoke_run: Path) -> None:
    results = pd.read_parquet(smoke_run / "06_search" / "results.parquet")
    metrics = json.loads((smoke_run / "06_search" / "metrics.json").read_text())
    short = results[(results.form == "short") & (results.system == "student")]
    assert math.isclose(short.ndcg_10.mean(), metrics["search"]["short"]["student"]["ndcg_10"]["mean"])
    train = pd.read_parquet(smoke_run / "02_annotated").query("split == 'train'")
    assert not set(results.intent) & set(train.intent), "no judged intent was trained on"


def test_figures_are_written(smoke_run: Path) -> None:
    written = {file.stem for file in (smoke_run / "06_search" / "figures").glob("*.png")}
    assert {"contact_sheet", "three_commands", "image_as_intent", "search_gains", "lever"} <= written


def test_the_page_without_a_kernel_shows_what_is_found(smoke_run: Path, finder) -> None:
    notebook = nbformat.read(smoke_run / "notebooks" / "06_search_and_recommendation.ipynb", 4)
    pages = [
        output.data["text/html"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "text/html" in output.get("data", {}) and "<figure" in output.data["text/html"]
    ]
    search, items = finder
    intent = "a birthday card with a fox"
    shown = Finder(search, items, plain).page(intent)
    titles = lambda page: re.findall(r"<figcaption[^>]*>(.*?)<", page)  # noqa: E731
    assert titles(pages[-1]) == titles(shown) and len(titles(shown)) == 12


def test_the_finder_takes_an_image_and_escapes_what_it_is_given(finder) -> None:
    search, items = finder
    page = Finder(search, items, plain)
    picture = Path(items.image.iloc[0])
    assert page.intent_of(picture.name, picture.read_bytes()).startswith(items.title.iloc[0].lower())
    shown = page.page("<script>alert(1)</script> fox")
    assert "<script" not in shown and html.escape("<script>") in shown
    assert "Type an intent" in page.page("  ")


def test_a_catalogue_of_ones_own_runs_without_judgements(smoke_run: Path, tmp_path: Path) -> None:
    shutil.copytree(
        smoke_run, tmp_path / "outputs" / "smoke", ignore=shutil.ignore_patterns("06_search", "checkpoints")
    )
    rows = [
        ("koi", "koi pond", "koi, <b>water</b>"),
        ("fox", "<img src=x>", "fox"),
        ("owl", "owl 🦉", ""),
        ("owl", "", ""),
    ]
    pd.DataFrame(rows, columns=["id", "title", "keywords"]).to_csv(tmp_path / "items.csv", index=False)
    command = [
        "run",
        "--preset",
        "smoke",
        "--from",
        str(STAGES.index("06_search") + 1),
        "--set",
        f"catalog={tmp_path / 'items.csv'}",
    ]
    environment = {**os.environ, "UDRL_OUTPUTS": str(tmp_path / "outputs"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "udrl_utils.cli", *command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    metrics = json.loads((tmp_path / "outputs" / "smoke" / "06_search" / "metrics.json").read_text())
    assert metrics["catalog"] == {"items": 3, "left_out": {"neither title, keywords nor image": 1}}
    assert set(metrics["search"]["all"]["student"]) == {"diversity"}
