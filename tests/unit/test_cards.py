"""Cards say what data are; nothing goes to a hub unless a repository is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from udrl_utils import cards
from udrl_utils.rewards import read_annotated
from udrl_utils.runs import RunFolder
from udrl_utils.settings import AnnotationSettings, TrainingSettings


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list:
    """Calls that would have gone to the hub."""
    calls = []
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda self, *a, **k: calls.append(("repo", a, k)))
    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", lambda self, *a, **k: calls.append(("commit", a, k)))
    return calls


def test_the_card_of_the_data(smoke_run: Path) -> None:
    card = (smoke_run / "02_annotated" / "_README.md").read_text()
    annotated = read_annotated(RunFolder(smoke_run))
    assert f"{len(annotated)} pairs" in card and "`Qwen2.5-Coder-1.5B-Instruct`" in card and "MIT" in card
    assert "**diversity** [1 - mean cosine]: 1 - mean cosine to the other prompts" in card
    assert f"| 0.5 | {annotated.length.median()} |" in card


def test_the_card_of_the_student(smoke_run: Path) -> None:
    plain = (smoke_run / "03_student" / "README.md").read_text()
    card = (smoke_run / "04_analysis" / "student_card.md").read_text()
    metrics = json.loads((smoke_run / "04_analysis" / "metrics.json").read_text())
    for part in ("Teacher: `Qwen2.5-Coder-1.5B-Instruct`", "MIT", "| text_to_image | relevance | "):
        assert part in plain and part in card
    spearman = metrics["calibration"]["all"]["relevance"]["spearman"]
    assert f"| relevance | {round(spearman, 3)} |" in card
    assert f"relevance {metrics['relative_to_teacher']['student_best']['relevance']['mean']:.1%} [" in card
    assert "commanded against achieved" not in plain, "results belong to the analysis"
    assert cards.student_card(RunFolder(smoke_run)) == plain, "completing it twice adds nothing"


def test_nothing_is_uploaded_unless_a_repository_is_named(smoke_run: Path, hub: list) -> None:
    run = RunFolder(smoke_run)
    cards.share_student(run.settings(TrainingSettings), run)
    cards.share_data(run.settings(AnnotationSettings), run, read_annotated(run))
    assert not hub


def test_what_is_uploaded(smoke_run: Path, hub: list) -> None:
    run = RunFolder(smoke_run)
    annotation = run.settings(AnnotationSettings).model_copy(update={"data_repo": "me/pairs"})
    training = run.settings(TrainingSettings).model_copy(update={"model_repo": "me/student"})
    cards.share_data(annotation, run, read_annotated(run))
    cards.share_student(training, run)
    repos, commits = hub[::2], hub[1::2]
    assert [(call[1], call[2]["repo_type"], call[2]["private"]) for call in repos] == [
        (("me/pairs",), "dataset", True),
        (("me/student",), "model", True),
    ]
    data, model = ({operation.path_in_repo for operation in call[1][1]} for call in commits)
    assert "README.md" in data and {name.split("-")[0] for name in data} == {"README.md", "part"}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "commands.json"} <= model
    assert not [name for name in data | model if name.startswith(("_", "."))]
