"""What a run would take: the figures follow from what was measured, and the page shows what the command prints."""

from __future__ import annotations

import json
import re

import pandas as pd
import pytest
from typer.testing import CliRunner

from udrl_utils import estimate
from udrl_utils.cli import app
from udrl_utils.gpt2 import base_tokenizer, new_student, train_tokenizer
from udrl_utils.presets import read_settings
from udrl_utils.settings import ROOT
from udrl_utils.teachers.recorded import RECORDED

PAGE = ROOT / "docs" / "scaling.md"


def estimated(*options: str) -> dict[str, str]:
    """Rows of the table that the command prints: what, and how much."""
    done = CliRunner().invoke(app, ["estimate", *options])
    assert done.exit_code == 0, done.output
    rows = [line.strip("| ").split(" | ") for line in done.output.splitlines()[2:]]
    return {what: much for what, much, _ in rows}


def test_the_page_shows_what_its_command_prints() -> None:
    text = PAGE.read_text()
    [command] = re.findall(r"^    udrl (estimate .*?)  +#", text, re.M)
    table = text.split("<!-- udrl estimate -->\n")[1].split("\n<!-- end -->")[0]
    arguments = [part.strip("'") for part in re.findall(r"'[^']*'|\S+", command)]
    assert CliRunner().invoke(app, arguments).output.strip() == table.strip()


def test_the_texts_are_those_of_the_recording() -> None:
    table, tokenizer = pd.read_parquet(RECORDED / "prompts.parquet"), base_tokenizer("recorded")
    parts = json.loads((RECORDED / "recording.json").read_text())["parts"]
    intents = table.drop_duplicates(["task", "intent"]).intent

    def tokens(texts: pd.Series) -> float:
        return sum(map(len, tokenizer(list(texts), add_special_tokens=False).input_ids)) / len(texts)

    measured = {
        "KEPT": sum(part["kept"] for part in parts) / sum(part["asked"] for part in parts),
        "PROMPT_CHARACTERS": table.prompt.str.len().mean(),
        "PROMPT_WORDS": table.prompt.str.split().str.len().mean(),
        "PROMPT_TOKENS": tokens(table.prompt),
        "INTENT_CHARACTERS": intents.str.len().mean(),
        "INTENT_TOKENS": tokens(intents),
    }
    for name, value in measured.items():
        assert getattr(estimate, name) == pytest.approx(value, rel=0.25), name


def test_the_size_of_the_student_is_that_of_the_model(smoke: dict) -> None:
    assert "104,126,976" in (ROOT / "notebooks" / "presets" / "paper.yaml").read_text()
    assert estimate.student_parameters(read_settings("paper", [])["03_student"]) == 104_126_976
    training = read_settings("smoke", ["vocab_size=300"])["03_student"]
    model = new_student(training, train_tokenizer(["a koi pond"], 300, []))
    exact = estimate.student_parameters(training.model_copy(update={"vocab_size": model.config.vocab_size}))
    assert exact == model.num_parameters()


def test_speeds_prices_and_forms_count() -> None:
    usual = estimated("--set", "teacher_prices=[1, 2]")
    assert usual["requests to the teacher"] == usual["intents"] and usual["requests to the judge"] == "52 million"
    twice = estimated("--writing", "11554", "--training", "348000", "--set", "teacher_prices=[2, 4]")
    for row, times in (("hours of the teacher", 0.5), ("GPU hours of training", 0.5), ("cost of the teacher", 2)):
        before, after = (float(found[row].replace(",", "")) for found in (usual, twice))
        assert after == pytest.approx(times * before, rel=0.05), row
    single = estimated("--set", "teacher_form=single", "--set", "rewards=[length]")
    assert single["requests to the teacher"] == "59.2 million" and single["requests to the judge"] == "0"
    assert single["cost of the teacher"] == "-"
    together = estimated("--set", "teacher_intents_per_request=4")
    assert together["requests to the teacher"] == "1.85 million"
    small = estimated("--pairs", "1000", "--preset", "laptop")
    assert small["intents"] == "143" and small["student"].endswith("parameters")
