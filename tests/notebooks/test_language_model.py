"""A real language model, SmolLM2 of 135M parameters, teaches in notebook 01."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from udrl_utils.errors import RunError
from udrl_utils.language_models import fetch
from udrl_utils.settings import ROOT
from udrl_utils.wording import Vocabulary


@pytest.fixture(scope="module")
def gguf() -> Path:
    """The model's file in models/, fetched if need be."""
    try:
        return fetch("smollm2", ROOT / "models")
    except RunError as error:
        pytest.skip(f"no language model could be fetched: {error}")


@pytest.mark.slow
def test_a_language_model_teaches(gguf: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "UDRL_OUTPUTS": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    changes = {"teacher": "local", "teacher_model": str(gguf), "tasks": "[query_rewrite]", "n_intents": 20}
    sets = [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]
    command = [
        sys.executable,
        "-m",
        "udrl_utils.cli",
        "run",
        "--preset",
        "smoke",
        "--run",
        "taught",
        "--to",
        "1",
        *sets,
    ]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "replies, " in done.stdout and "min left in this shard" in done.stdout
    record = json.loads((tmp_path / "taught" / "run.json").read_text())["stages"]["01_pairs"]
    pairs = pd.read_parquet(tmp_path / "taught" / "01_pairs")
    assert record["counts"]["asked"] == 80 and len(pairs) > 20 and set(pairs.teacher) == {gguf.name}
    words = Vocabulary(pairs.intent)
    shares = [words.share(intent, prompt) for intent, prompt in zip(pairs.intent, pairs.prompt, strict=True)]
    assert sum(shares) / len(shares) < 0.05, "a language model writes words that exist"
