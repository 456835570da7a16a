"""The cards of a run's data and student, and their upload to a model hub: off by default, and private at first.

In go a run's settings, tables and metrics; out come Markdown cards and, where a repository is named, an upload.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from udrl_utils.evaluation import without_levels, written
from udrl_utils.rewards import REWARDS
from udrl_utils.runs import RunFolder, shards_of
from udrl_utils.settings import AnnotationSettings, DistillationSettings, TrainingSettings
from udrl_utils.tasks import TASKS
from udrl_utils.teachers.recorded import recorded_name

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
MADE = "## How it was made\n"  # from here on a student's card says what only its run knows


def data_card(run: RunFolder, annotated: pd.DataFrame) -> str:
    """What a reader must know of the annotated pairs: teacher, rewards, quantiles, licence."""
    made, scored = run.settings(DistillationSettings), run.settings(AnnotationSettings)
    sizes = annotated.groupby(["task", "split"]).size().unstack(fill_value=0)
    rewards = "\n".join(
        f"- **{name}** [{REWARDS[name].unit}]: {(REWARDS[name].score.__doc__ or 'made for this run').splitlines()[0]}"
        for name in scored.rewards
    )
    tasks = "\n".join(f"- `{task}`: {TASKS[task].definition}" for task in sizes.index)
    return f"""---
task_categories: [text-generation]
configs: [{{config_name: default, data_files: "part-*.parquet"}}]
---
# Prompts that a teacher wrote, with the rewards that each achieved

{len(annotated)} pairs of intent and prompt. Teacher: {", ".join(f"`{name}`" for name in annotated.teacher.unique())};
intents: `{made.intents}`; seed {made.seed}. Embeddings: `{scored.encoder}`.

{tasks}

Pairs per task and split, split by intent:

{table(sizes)}

## Rewards

{rewards}

Quantiles of what was achieved:

{table(annotated[scored.rewards].quantile(QUANTILES).round(3))}

## Licence

Recorded prompts come under the MIT licence of the workbook. For those of another language model, the terms of that
model hold, and for intents from a file, those of the file.
"""


def table(frame: pd.DataFrame) -> str:
    """A data frame as a Markdown table."""
    header = ["", *map(str, frame.columns)]
    rows = [[str(index), *map(str, row)] for index, row in zip(frame.index, frame.to_numpy(), strict=True)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def share_data(settings: AnnotationSettings, run: RunFolder, annotated: pd.DataFrame) -> Path:
    """Write the card of 02_annotated, and upload card and pairs if `data_repo` names a repository."""
    card = run / "02_annotated" / "_README.md"
    card.write_text(data_card(run, annotated), encoding="utf-8")
    if settings.data_repo:
        files = {file.name: file for file in shards_of(run / "02_annotated")}
        upload({**files, "README.md": card}, settings.data_repo, "dataset")
    return card


def student_card(run: RunFolder, metrics: dict[str, Any] | None = None) -> str:
    """The student's own card with what its run knows: teacher, licence, and the metrics once there are any."""
    made, card = run.settings(DistillationSettings), (run / "03_student" / "README.md").read_text(encoding="utf-8")
    teacher = made.pairs or (recorded_name() if made.teacher == "recorded" else made.teacher_model)
    measured = ""
    if metrics:
        obeyed = pd.DataFrame(without_levels(metrics["calibration"]["all"])).T.astype(float).round(3)
        relative = metrics["relative_to_teacher"]["student_best"]
        measured = f"""
On test intents that were never trained on, commanded against achieved:

{table(obeyed.astype(object).fillna(""))}

At its best commands, relative to the teacher, with 95% intervals:
{", ".join(f"{name} {written(value, '.1%')}" for name, value in relative.items())}.
"""
    return f"""{card.partition(MADE)[0].rstrip()}

{MADE}
Teacher: `{teacher}`; intents: `{made.intents}`; seed {made.seed}. A student of
the recorded teacher comes under the MIT licence of the workbook; one of another language model is bound by the terms of
that model.
{measured}"""


def describe_student(run: RunFolder, metrics: dict[str, Any]) -> None:
    """Write 04_analysis/student_card.md: the student's card with what the analysis measured."""
    (run / "04_analysis" / "student_card.md").write_text(student_card(run, metrics), encoding="utf-8")


def share_student(settings: TrainingSettings, run: RunFolder) -> None:
    """Complete the student's card, and upload student, codec and card if `model_repo` names a repository."""
    (run / "03_student" / "README.md").write_text(student_card(run), encoding="utf-8")
    if settings.model_repo:
        files = {f.name: f for f in (run / "03_student").iterdir() if f.is_file() and f.name[0] not in "._"}
        upload(files, settings.model_repo, "model")


def upload(files: dict[str, Path], repo: str, kind: str) -> None:
    """Put files into a hub repository in one commit; the token comes from HF_TOKEN or the hub's own login."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    api.create_repo(repo, repo_type=kind, private=True, exist_ok=True)
    operations = [CommitOperationAdd(name, str(file)) for name, file in sorted(files.items())]
    api.create_commit(repo, operations, commit_message="Upload of a UDRL workbook run", repo_type=kind)
    print(f"uploaded {len(files)} files to the {kind} repository {repo}", flush=True)
