"""Notebooks 01 to 04 on pairs that real LLMs wrote: long prompts, few pairs, a task with one prompt per intent.

UDRL_LLM_PAIRS names a csv file of them, with columns task, intent and prompt.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from udrl_utils.commands import Command
from udrl_utils.settings import NOTEBOOKS, ROOT
from udrl_utils.student import Student

PAIRS = Path(os.environ.get("UDRL_LLM_PAIRS", ROOT.parent / "shared" / "data" / "llm_pairs" / "pairs.csv"))
CHANGES = ("max_words=200", "epochs=0", "validation_fraction=0.2", "test_fraction=0.2")


def printed(run: Path, stage: str) -> str:
    """What a notebook of the run printed."""
    notebook = nbformat.read(run / "notebooks" / f"{NOTEBOOKS[stage]}.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream")


@pytest.mark.slow
@pytest.mark.skipif(not PAIRS.exists(), reason=f"no pairs of real LLMs in {PAIRS}: name a file in UDRL_LLM_PAIRS")
def test_notebooks_run_on_sixty_pairs_of_real_llms(tmp_path: Path) -> None:
    table = pd.read_csv(PAIRS)
    sets = table[table.groupby(["task", "intent"]).prompt.transform("size") == 3]
    sets = sets[sets.intent.isin(sets.intent.unique()[:15])]
    pd.concat([sets, table[table.task == "text_to_template"].head(15)]).to_csv(tmp_path / "few.csv")
    changes = [part for change in (f"pairs={tmp_path / 'few.csv'}", *CHANGES) for part in ("--set", change)]
    environment = {**os.environ, "UDRL_OUTPUTS": str(tmp_path / "outputs"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "udrl_utils.cli", "run", "--preset", "smoke", "--to", "4", *changes]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = tmp_path / "outputs" / "smoke"
    assert "of 60 prompts dropped" in printed(run, "01_pairs")
    told = printed(run, "03_student")
    assert "diversity is not commanded for text_to_template: each of its intents has one prompt" in told
    assert "prompt tokens: 8 passes; learning rate 0.002; dropout 0.1" in told
    assert "instead of 256" in told and "left out" not in told
    student = Student.load(run / "03_student")
    assert student.codec.longest > 100 and student.codec.lengths["text_to_image"][1] > 90
    [[text]] = student.generate(["a toilet"], Command("text_to_image", length=100, relevance=0.9))
    assert isinstance(text, str)
