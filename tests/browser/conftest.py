"""Fixtures of the browser tests; all are skipped, with a line that says so, where there is no Chromium."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lab
import pandas as pd
import pytest
from hostile import HOSTILE

from udrl_utils.settings import NOTEBOOKS


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium."""
    with lab.browser() as found:
        if found is None:
            pytest.skip("no Chromium is installed, so no page was looked at: apt-get install chromium")
        yield found


@pytest.fixture(scope="session")
def hostile_run(smoke_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run beside the smoke run in which every intent is hostile, and a reply of the teacher to each."""
    prompts = pd.read_parquet(smoke_run / "01_pairs").prompt
    fillers = itertools.cycle(prompts[prompts.str.split().str.len() < 12])
    asked = [("text_to_image", text, f"{part}{next(fillers)}") for text in HOSTILE for part in (f"{text} ", "", "", "")]
    pairs = tmp_path_factory.mktemp("hostile") / "pairs.parquet"
    pd.DataFrame(asked, columns=["task", "intent", "prompt"]).to_parquet(pairs)
    changes = {"pairs": pairs, "test_fraction": 0.4, "tasks": "[text_to_image]", "rounds": 0, "plain_sft": "false"}
    changes |= {"max_words": 20, "analysis_intents": 2, "samples_per_intent": 2}  # short, but all of it is shown
    every = str(len(NOTEBOOKS))
    command = [sys.executable, "-m", "udrl_utils.cli", "run", "--preset", "smoke", "--run", "hostile", "--to", every]
    options = [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]
    environment = {**os.environ, "UDRL_OUTPUTS": str(smoke_run.parent), "HF_HUB_OFFLINE": "1"}
    environment["OMP_NUM_THREADS"] = "1"  # a model this small only waits for more of them
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return smoke_run.parent / "hostile"


@pytest.fixture(scope="session")
def notebook_05(chromium, smoke_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of notebook 05 in a JupyterLab, opened at the smoke run."""
    with lab.notebook_05(smoke_run, tmp_path_factory.mktemp("lab"), OMP_NUM_THREADS="1") as address:
        yield address
