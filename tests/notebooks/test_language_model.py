"""A real language model, SmolLM2 of 135M parameters, teaches in notebook 01 and stands beside the student in 04."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from udrl_utils.errors import RunError
from udrl_utils.evaluation import overlap
from udrl_utils.local_models import fetch
from udrl_utils.settings import ROOT
from udrl_utils.wording import Vocabulary

NAME = "SmolLM2-135M-Instruct.Q4_1"


@pytest.fixture(scope="module")
def gguf() -> Path:
    """The model's file in models/, fetched if need be."""
    try:
        return fetch("smollm2", ROOT / "models")
    except RunError as error:
        pytest.skip(f"no language model could be fetched: {error}")


@pytest.mark.slow
def test_a_language_model_teaches_and_is_compared_with(gguf: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "UDRL_OUTPUTS": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    changes = {
        "teacher": "local",
        "teacher_model": str(gguf),
        "tasks": "[text_to_image, query_rewrite]",
        "n_intents": 60,
        "test_fraction": 0.2,
        "rounds": 0,
        "plain_sft": "false",
        "analysis_intents": 2,
        "baselines": f"[local:{gguf}]",
        "fluency_model": str(gguf),
    }
    sets = [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "udrl_utils.cli", "run", "--preset", "smoke", "--run", "taught", *sets]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "replies, " in done.stdout and "min left in this shard" in done.stdout
    record = json.loads((tmp_path / "taught" / "run.json").read_text())["stages"]["01_pairs"]
    pairs = pd.read_parquet(tmp_path / "taught" / "01_pairs")
    assert record["counts"]["asked"] == 240 and len(pairs) > 120 and set(pairs.teacher) == {gguf.name}
    words = Vocabulary(pairs.intent)
    shares = [words.share(intent, prompt) for intent, prompt in zip(pairs.intent, pairs.prompt, strict=True)]
    assert sum(shares) / len(shares) < 0.03, "a language model writes words that exist"
    kept = [overlap(intent, [prompt]) for intent, prompt in zip(pairs.intent, pairs.prompt, strict=True)]
    assert sum(kept) / len(kept) > 0.3, "and about what it was asked for"
    systems = json.loads((tmp_path / "taught" / "04_analysis" / "metrics.json").read_text())["systems"]
    assert systems[NAME]["fluency"]["mean"] > systems["student_open"]["fluency"]["mean"]
    assert systems[NAME]["relevance"]["mean"] > systems["nearest_copy"]["relevance"]["mean"]
