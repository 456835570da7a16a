"""The real notebooks, run headless from a foreign working directory on the smoke preset."""

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

from udrl_utils import report
from udrl_utils.commands import Command, CommandCodec
from udrl_utils.settings import NOTEBOOKS, ROOT, RunError, RunFolder, TrainingSettings
from udrl_utils.student import Student
from udrl_utils.training import train_student


def test_every_contract_file_is_there(smoke_run: Path) -> None:
    record = json.loads((smoke_run / "run.json").read_text())
    assert list(record["stages"]) == list(NOTEBOOKS)
    assert record["environment"]["packages"]["trl"]
    annotated = pd.read_parquet(smoke_run / "02_annotated")  # the folder as a whole, as any tool would
    assert len(pd.read_parquet(smoke_run / "01_pairs")) == len(annotated)
    assert {"pair_id", "split", "task", "intent", "prompt", "teacher", "length", "relevance"} <= set(annotated.columns)
    assert (annotated.length == annotated.prompt.str.split().str.len()).all()
    assert (smoke_run / "03_student" / "README.md").exists()


def test_a_notebook_runs_by_papermill_alone(smoke_run: Path, tmp_path: Path) -> None:
    preset, notebook = ROOT / "notebooks/presets/smoke.yaml", ROOT / "notebooks/01_teacher_distillation.ipynb"
    command = ["papermill", str(notebook), "copy.ipynb", "-f", str(preset), "-p", "run", "mine"]
    environment = {**os.environ, "UDRL_OUTPUTS": str(tmp_path / "outputs"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-m", *command], cwd=tmp_path, env=environment, check=True, capture_output=True)
    for ours in (tmp_path / "outputs" / "mine" / "01_pairs").glob("part-*.parquet"):
        assert ours.read_bytes() == (smoke_run / "01_pairs" / ours.name).read_bytes()
    assert (tmp_path / "outputs" / "mine" / "run.json").exists()


def test_best_commands_were_measured(smoke_run: Path) -> None:
    codec = CommandCodec.load(smoke_run / "03_student")
    assert set(codec.best) == set(codec.edges)
    card = (smoke_run / "03_student" / "README.md").read_text()
    assert all(repr(codec.best_command(task)) in card for task in codec.edges)


def test_metrics_keep_their_contract(smoke_run: Path) -> None:
    metrics = json.loads((smoke_run / "04_analysis" / "metrics.json").read_text())
    assert set(metrics["systems"]) == {"teacher", "student_best", "student_open", "sft_plain", "nearest_copy"}
    for values in metrics["systems"].values():
        for value in values.values():
            assert value["low"] <= value["mean"] <= value["high"]
    assert metrics["relative_to_teacher"]["teacher"]["relevance"]["mean"] == 1
    assert {"spearman", "mae", "within_1", "within_2"} <= set(metrics["calibration"]["all"]["length"])


def test_samples_agree_with_metrics(smoke_run: Path) -> None:
    samples = pd.read_parquet(smoke_run / "04_analysis" / "calibration.parquet")
    metrics = json.loads((smoke_run / "04_analysis" / "metrics.json").read_text())
    rows = samples[samples.reward == "length"]
    error = (rows.asked_length - rows.prompt.str.split().str.len()).abs().mean()
    assert math.isclose(error, metrics["calibration"]["all"]["length"]["mae"])


def test_the_student_loads_plainly_and_generates(smoke_run: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = smoke_run / "03_student"
    assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "gpt2"
    assert "<|prompt|>" in AutoTokenizer.from_pretrained(folder).get_vocab()
    student = Student.load(folder)
    written = student.generate(["koi pond"], Command(task="text_to_image", length=18, relevance=0.9), n=4, seed=0)
    assert len(written) == 1 and len(written[0]) == 4


def test_executed_notebooks_show_figures_and_no_errors(smoke_run: Path) -> None:
    for name in NOTEBOOKS.values():
        notebook = nbformat.read(smoke_run / "notebooks" / f"{name}.ipynb", 4)
        outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
        assert not [output for output in outputs if output.output_type == "error"]
        assert any("image/png" in output.get("data", {}) for output in outputs), name


def test_the_report_is_self_contained_and_escaped(smoke_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(smoke_run, copy)
    samples = pd.read_parquet(copy / "04_analysis" / "samples.parquet")
    samples["prompt"] = "<script>alert(1)</script>"
    samples.to_parquet(copy / "04_analysis" / "samples.parquet")
    page = report.build(RunFolder(copy)).read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "http://" not in page and "https://" not in page
    assert page.count("data:image/png;base64,") >= 8


def test_training_is_seeded_and_resumes_exactly(
    smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.numpy import load_file
    from transformers import Trainer

    copy = tmp_path / "run"
    shutil.copytree(smoke_run, copy)
    before = load_file(copy / "03_student" / "model.safetensors")
    run = RunFolder(copy)
    settings = run.settings(TrainingSettings)
    save, saved = Trainer._save_checkpoint, []

    def dies_after_saving(self, *args, **options) -> None:
        save(self, *args, **options)
        saved.append(self.state.global_step)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_save_checkpoint", dies_after_saving)
    with pytest.raises(KeyboardInterrupt):
        train_student(settings, run)
    assert Student.load(copy / "03_student"), "the last good student stays loadable"
    monkeypatch.setattr(Trainer, "_save_checkpoint", save)
    log = train_student(settings, run)
    assert min(entry["step"] for entry in log.entries) > saved[0]
    after = load_file(copy / "03_student" / "model.safetensors")
    assert all((before[name] == after[name]).all() for name in before)


def test_a_missing_stage_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="03_udrl_training"):
        Student.load(tmp_path)
    with pytest.raises(RunError, match="04_analysis"):
        report.read_metrics(RunFolder(tmp_path))
