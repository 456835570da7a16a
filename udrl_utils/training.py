"""Training: a run's annotated pairs become a student; a training that was cut off goes on where it was.

Notebook 03 types out what `train_student` does here for ablations, the baseline and several processes. Nothing here
knows what a round asks for.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from udrl_utils.commands import CommandCodec
from udrl_utils.errors import SettingsError
from udrl_utils.gpt2 import BASE
from udrl_utils.machine import pool, quietly, seed_everything, shares
from udrl_utils.rewards import read_annotated
from udrl_utils.rows import command_pairs
from udrl_utils.runs import STAMP, RunFolder, Stamp, read_stamp, renew, shards_of, stamp, write_json
from udrl_utils.settings import SAMPLING, AnnotationSettings, DistillationSettings, TrainingSettings
from udrl_utils.splits import HELD_OUT
from udrl_utils.student import Student
from udrl_utils.trainer import make_room, make_trainer, set_dropout, untrained
from udrl_utils.training_log import TrainingLog, callback
from udrl_utils.vocabulary import Vocabulary


def train_rows(settings: TrainingSettings, run: RunFolder) -> pd.DataFrame:
    """Annotated pairs to train on: the train split, without `unseen_lengths`."""
    return seen(read_annotated(run, "train"), settings)


def seen(rows: pd.DataFrame, settings: TrainingSettings) -> pd.DataFrame:
    """The rows without the lengths of each task that are kept out of training as a probe."""
    if "length" not in rows:
        return rows
    return rows[~is_unseen(rows.task, rows.length, settings)].reset_index(drop=True)


def is_unseen(tasks: pd.Series, lengths: pd.Series, settings: TrainingSettings) -> pd.Series:
    """Whether each length [words] is one that `unseen_lengths` keeps from its task."""
    unseen = pd.Series(False, tasks.index)
    for task, kept_out in settings.unseen_lengths.items():
        unseen |= (tasks == task) & lengths.isin(kept_out)
    return unseen


def fit_codec(settings: TrainingSettings, run: RunFolder, train: pd.DataFrame) -> CommandCodec:
    """The codec of a run, fitted on its `train_rows`. Raises: SettingsError as `check_start` does."""
    check_start(settings, run.settings(DistillationSettings).test_fraction)
    codec = CommandCodec.fit(train, run.settings(AnnotationSettings).rewards, settings.bins)
    sampling = settings.model_dump(include=set(SAMPLING))
    words = " ".join(sorted(Vocabulary(chain(train.intent.unique(), train.prompt)).taught))
    form, place, horizon = settings.command_form, settings.command_place, settings.horizon
    return replace(codec, form=form, place=place, horizon=horizon, sampling=sampling, words=words, reads=True)


def check_start(settings: TrainingSettings, test_fraction: float) -> None:
    """Raises: SettingsError when the shipped base has read intents that the run tests with."""
    if settings.base == "recorded" and test_fraction > HELD_OUT:
        raise SettingsError(
            f"parameter base='recorded' has read intents that test_fraction={test_fraction} holds out; at most "
            f"{HELD_OUT} is allowed with it, any with base=''"
        )


def train_student(settings: TrainingSettings, run: RunFolder, commanded: bool = True) -> TrainingLog:
    """Train on the run's annotated pairs and save a Hugging Face folder; resumes from the last checkpoint exactly.

    commanded=False trains the plain baseline: the same pairs, steps and shape, and no reward in any prefix. It goes
    to 03_student/sft_plain. The folder of a student is only replaced once its successor is complete. A student whose
    rounds were cut off is not trained again.
    """
    from accelerate import PartialState

    if commanded and (log := trained_before(settings, run)):
        return log
    processes, name = PartialState(), "student" if commanded else "sft_plain"
    folder = run / "03_student" if commanded else run / "03_student" / name
    seed_everything(settings.seed)
    train, held = train_rows(settings, run), read_annotated(run, "validation")
    codec = replace(fit_codec(settings, run, train), reads=commanded)
    model, tokenizer, plan = untrained(settings, codec, train)
    print(plan.reason, flush=True)
    brief = plan.of(settings)
    with processes.main_process_first():  # the others find the rows that it has laid out
        data = [
            command_pairs(table, codec, brief, tokenizer, commanded, reading, folder / "rows")
            for table, reading in ((train, commanded), (held, False))
        ]
        make_room(model, tokenizer, data)
    set_dropout(model, plan.dropout)
    log, student = TrainingLog(name, held), Student(model, tokenizer, codec)
    fit(student, brief, folder, *data, log, student_stamp(settings, run))
    if commanded and processes.is_main_process:
        start_rounds(settings, run, student, log)
    processes.wait_for_everyone()
    return log


def trained_before(settings: TrainingSettings, run: RunFolder) -> TrainingLog | None:
    """The log of a student that was trained and whose rounds were cut off; None where there is none like it."""
    rounds = run / "03_student" / "rounds"
    if read_stamp(rounds) == student_stamp(settings, run):
        return TrainingLog.load(rounds / "0" / "training_log.json")
    return None


def start_rounds(settings: TrainingSettings, run: RunFolder, student: Student, log: TrainingLog) -> None:
    """Forget earlier rounds, and keep a trained student as that of round 0 if there are to be any."""
    rounds = run / "03_student" / "rounds"
    shutil.rmtree(rounds, ignore_errors=True)
    if settings.rounds:
        student.save(rounds / "0")
        log.save(rounds / "0" / "training_log.json")
        write_json(rounds / STAMP, student_stamp(settings, run))  # until the rounds are finished


@contextmanager
def baseline_beside(settings: TrainingSettings, run: RunFolder) -> Iterator[list[TrainingLog]]:
    """Train the plain baseline while the body trains the student; the list holds its log afterwards.

    On a CPU of two threads and more it has a process and half of the threads to itself; elsewhere it comes after the
    body. Nothing is trained, and the list stays empty, with plain_sft=False.
    """
    import torch

    logs: list[TrainingLog] = []
    (count, threads), before = shares(2), torch.get_num_threads()
    if not settings.plain_sft or count == 1:
        yield logs
        if settings.plain_sft:
            logs.append(train_student(settings, run, commanded=False))
        return
    with pool(1, quietly, threads) as beside:
        plain = beside.submit(train_student, settings, run, commanded=False)
        torch.set_num_threads(threads)
        try:
            yield logs
            logs.append(plain.result())
        finally:
            torch.set_num_threads(before)


def fit(
    student: Student, settings: TrainingSettings, folder: Path, train: Any, held: Any, log: TrainingLog, now: Stamp
) -> None:
    """Train a student on prompt/completion rows and save it; goes on from a checkpoint with the same stamp."""
    from accelerate import PartialState

    processes, work = PartialState(), folder / "checkpoints"
    trainer = make_trainer(student.model, student.tokenizer, settings, work, train, held)
    trainer.add_callback(callback(log, student))
    with processes.main_process_first():
        checkpoint = last_checkpoint(work, now)
    trainer.train(resume_from_checkpoint=checkpoint)
    processes.wait_for_everyone()
    if processes.is_main_process:
        save_trained(student, folder)
    processes.wait_for_everyone()


def save_trained(student: Student, folder: Path) -> None:
    """Save a student whose training is complete; its checkpoints and rows go."""
    student.save(folder)
    for left_over in ("checkpoints", "rows"):
        shutil.rmtree(folder / left_over, ignore_errors=True)


def last_checkpoint(work: Path, now: Stamp) -> str | None:
    """The newest checkpoint with the same stamp; incomplete ones, and those made from something else, are removed."""
    from transformers.trainer_utils import get_last_checkpoint

    renew(work, now)
    for checkpoint in work.glob("checkpoint-*"):
        if not (checkpoint / "trainer_state.json").exists():  # written last
            shutil.rmtree(checkpoint)
    return get_last_checkpoint(str(work))


def student_stamp(settings: TrainingSettings, run: RunFolder) -> Stamp:
    """What a student is made from: settings, the annotated pairs, and the weights of a base that is a folder."""
    base = BASE if settings.base == "recorded" else Path(settings.base)
    weights = sorted(base.glob("*.safetensors")) if settings.base else []
    return stamp(settings, [*shards_of(run / "02_annotated"), *weights])
