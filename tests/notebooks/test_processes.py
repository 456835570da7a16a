"""Training by several processes: the same batches, the same losses, one student."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from udrl_utils.commands import CommandCodec
from udrl_utils.student import Student

LAUNCH = (sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--mixed_precision", "no", "--num_machines", "1")


def trained(run: Path, processes: int) -> list[dict]:
    """Loss entries of `accelerate launch -m udrl_utils.distributed` on a run."""
    shutil.rmtree(run / "03_student")
    command = [*LAUNCH, "--num_processes", str(processes), "-m", "udrl_utils.distributed", "--run", str(run)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    log = json.loads((run / "03_student" / "rounds" / "0" / "training_log.json").read_text())
    return [entry for entry in log["entries"] if "loss" in entry]


@pytest.mark.slow
def test_two_processes_train_like_one(smoke_run: Path, tmp_path: Path) -> None:
    runs = {n: tmp_path / f"by-{n}" for n in (1, 2)}
    for run in runs.values():
        shutil.copytree(smoke_run, run)
    one, two = (trained(run, n) for n, run in runs.items())
    assert [entry["step"] for entry in one] == [entry["step"] for entry in two] and len(one) > 10
    for alone, together in zip(one, two, strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], rel=0.01)
    for run in runs.values():
        assert Student.load(run / "03_student") and (run / "03_student" / "rounds" / "1" / "hindsight.parquet").exists()
        assert CommandCodec.load(run / "03_student").best
        assert not (run / "03_student" / "checkpoints").exists()
