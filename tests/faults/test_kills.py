"""Killed at any moment and started again, a run ends with the same files as one that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from udrl_utils.errors import RunError
from udrl_utils.runs import RunFolder
from udrl_utils.settings import NOTEBOOKS

HOLDER = """
import time
from udrl_utils.runs import RunFolder
RunFolder("shared").lock()
print("held", flush=True)
time.sleep(60)
"""
KILLED = ("01_pairs", "02_annotated", "03_student", "03_student")  # the stages that kills fall into
SEED = 3


def start_run(outputs: Path) -> subprocess.Popen:
    """`udrl run` of notebooks 01 to 03 on the smoke preset."""
    command = [sys.executable, "-m", "udrl_utils.cli", "run", "--preset", "smoke", "--to", "3"]
    environment = {**os.environ, "UDRL_OUTPUTS": str(outputs), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def contents(folder: Path, kind: str) -> dict[str, bytes]:
    """The files of a kind below a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob(kind)}


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL for the process and its kernels at once."""
    for victim in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        victim.kill()
    process.communicate()


@pytest.mark.slow
def test_kills_change_nothing(smoke_run: Path, tmp_path: Path) -> None:
    rng, finished, made = random.Random(SEED), [], RunFolder(smoke_run).read()["stages"]
    for stage in KILLED:
        process = start_run(tmp_path)
        began = any(line.startswith(NOTEBOOKS[stage]) for line in process.stdout)
        assert began, "the run goes on from the stage that was cut off"
        time.sleep(made[stage]["seconds"] * rng.uniform(0.2, 0.9))
        kill_all(process)
        record = tmp_path / "smoke" / "run.json"
        finished.append(len(json.loads(record.read_text())["stages"]) if record.exists() else 0)
    process = start_run(tmp_path)
    assert process.wait() == 0, process.stdout.read()[-3000:]
    assert len(set(finished)) > 1, "the kills fell into several stages"
    for folder, kind in (("01_pairs", "*.parquet"), ("02_annotated", "*.parquet"), ("03_student", "*.safetensors")):
        whole, killed = (contents(run / folder, kind) for run in (smoke_run, tmp_path / "smoke"))
        assert whole and whole.keys() == killed.keys()
        assert not [file for file in whole if whole[file] != killed[file]]


def test_the_second_process_on_a_run_refuses(outputs: Path) -> None:
    (outputs / "shared").mkdir(parents=True)
    process = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="run='shared' is being made by another process"):
            RunFolder("shared").lock()
    finally:
        process.kill()
        process.wait()
    started = time.monotonic()
    RunFolder("shared").lock()
    RunFolder("shared").lock()  # the same process may start again
    assert time.monotonic() - started < 5
