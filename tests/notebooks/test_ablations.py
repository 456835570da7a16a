"""Ablations on the smoke run: small runs of their own, trained and measured like any other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from udrl_utils.ablations import ablate, best_fifth, shuffled
from udrl_utils.errors import SettingsError
from udrl_utils.rewards import read_annotated
from udrl_utils.runs import RunFolder
from udrl_utils.settings import AnalysisSettings, AnnotationSettings
from udrl_utils.student import Student


def test_variants_are_small_runs_and_leave_the_run_alone(smoke_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(smoke_run, copy)
    run = RunFolder(copy)
    before = (copy / "03_student" / "model.safetensors").read_bytes()
    names = ["no commands", "commands as text", "one round"]
    settings = run.settings(AnalysisSettings).model_copy(
        update={"ablations": names, "ablation_rows": 500, "ablation_seeds": 1, "analysis_intents": 2}
    )
    table = ablate(settings, run)
    assert table.variant.tolist() == names
    assert table["length within 1"].between(0, 1).all()
    homes = {path.name: path for path in (copy / "04_analysis" / "ablations").iterdir()}
    assert set(homes) == {"no_commands-0", "commands_as_text-0", "one_round-0"}
    assert Student.load(homes["no_commands-0"] / "03_student").codec.form == "none"
    assert (homes["one_round-0"] / "03_student" / "rounds" / "1" / "hindsight.parquet").exists()
    assert (copy / "03_student" / "model.safetensors").read_bytes() == before
    written = {file: file.stat().st_mtime_ns for file in copy.rglob("*.safetensors")}
    pd.testing.assert_frame_equal(ablate(settings, run), table)
    assert {file: file.stat().st_mtime_ns for file in copy.rglob("*.safetensors")} == written, "measured is measured"


def test_an_unknown_variant_is_named_before_any_work(smoke_run: Path) -> None:
    run = RunFolder(smoke_run)
    settings = run.settings(AnalysisSettings).model_copy(update={"ablations": ["full", "no teacher"]})
    with pytest.raises(SettingsError, match="'no teacher' is unknown; allowed are all, full"):
        ablate(settings, run)
    assert not (smoke_run / "04_analysis" / "ablations").exists()


def test_what_is_done_to_the_pairs(smoke_run: Path) -> None:
    run = RunFolder(smoke_run)
    rows, annotation = read_annotated(run, "train"), run.settings(AnnotationSettings)
    dealt, best = shuffled(rows, annotation), best_fifth(rows, annotation)
    pd.testing.assert_frame_equal(dealt.drop(columns=annotation.rewards), rows.drop(columns=annotation.rewards))
    assert (dealt.length != rows.length).mean() > 0.5
    for _, group in rows.groupby("task"):
        for name in annotation.rewards:
            assert dealt.loc[group.index, name].sort_values().tolist() == group[name].sort_values().tolist()
    assert len(best) == len(rows) // 5
    assert best.relevance.mean() + best.diversity.mean() > rows.relevance.mean() + rows.diversity.mean()
