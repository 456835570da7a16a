"""Training: a run's annotated pairs become a student, and rounds take it further.

`python -m udrl_utils.training --run outputs/<run>` trains as notebook 03 does, under `accelerate launch` too. The
notebook types out what `train_student` and `train_rounds` do here for several processes, ablations and the baseline.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from udrl_utils.commands import CommandCodec
from udrl_utils.encoder import Encoder
from udrl_utils.errors import SettingsError
from udrl_utils.gpt2 import BASE
from udrl_utils.machine import pool, quietly, seed_everything, shares
from udrl_utils.rewards import load_rewards, read_annotated
from udrl_utils.rounds import (
    GRID,
    PATH,
    PROMPTS_PER_SET,
    best_commands,
    bounded,
    front_volume,
    hindsight_rows,
    measure_front,
    round_requests,
    write_hindsight,
)
from udrl_utils.rows import command_pairs
from udrl_utils.runs import STAMP, RunFolder, Stamp, read_stamp, renew, shards_of, stamp, write_json
from udrl_utils.samples import Sampler
from udrl_utils.settings import AnnotationSettings, DistillationSettings, TrainingSettings
from udrl_utils.splits import HELD_OUT
from udrl_utils.student import Student, model_card
from udrl_utils.trainer import make_room, make_trainer, plan_of, set_dropout, untrained
from udrl_utils.training_log import TrainingLog, callback

JUDGED = {"relevance", "diversity"}  # rewards that rounds are judged by


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


def fit_codec(settings: TrainingSettings, run: RunFolder, train: pd.DataFrame | None = None) -> CommandCodec:
    """The codec of a run, fitted on the rows that it is trained on, `train_rows` where none are given.

    Raises: SettingsError when rounds are asked for and the rewards that they are judged by were not scored, or the
    shipped base has read intents that the run tests with.
    """
    tested = run.settings(DistillationSettings).test_fraction
    if settings.base == "recorded" and tested > HELD_OUT:
        raise SettingsError(
            f"parameter base='recorded' has read intents that test_fraction={tested} holds out; at most {HELD_OUT} "
            "is allowed with it, any with base=''"
        )
    rewards = run.settings(AnnotationSettings).rewards
    if settings.rounds and not JUDGED.issubset(rewards):
        raise SettingsError(f"parameter rounds={settings.rounds} needs relevance and diversity in rewards={rewards}")
    codec = CommandCodec.fit(train_rows(settings, run) if train is None else train, rewards, settings.bins)
    if settings.rounds and not has_rounds(settings, codec):
        print(f"no rounds: only {', '.join(codec.rewards)} can be commanded, and rounds are judged by diversity too")
    sampling = settings.model_dump(include={"temperature", "min_p", "guidance"})
    return replace(
        codec, form=settings.command_form, place=settings.command_place, horizon=settings.horizon, sampling=sampling
    )


def has_rounds(settings: TrainingSettings, codec: CommandCodec) -> bool:
    """Whether a student is taken through rounds: not where no task is commanded diversity."""
    return settings.rounds > 0 and JUDGED.issubset(codec.rewards)


def train_student(settings: TrainingSettings, run: RunFolder, commanded: bool = True) -> TrainingLog:
    """Train on the run's annotated pairs and save a Hugging Face folder; resumes from the last checkpoint exactly.

    commanded=False trains the plain baseline: the same pairs, steps and shape, and no reward in any prefix. It goes
    to 03_student/sft_plain. The folder of a student is only replaced once its successor is complete. A student whose
    rounds were cut off is not trained again.
    """
    from accelerate import PartialState

    if commanded and (log := trained_before(settings, run)):
        return log
    processes, folder = PartialState(), run / "03_student" if commanded else run / "03_student" / "sft_plain"
    seed_everything(settings.seed)
    train, held = train_rows(settings, run), read_annotated(run, "validation")
    codec = fit_codec(settings, run, train)
    model, tokenizer, plan = untrained(settings, codec, train)
    print(plan.reason, flush=True)
    brief = plan.of(settings)
    with processes.main_process_first():  # the others find the rows that it has laid out
        data = [command_pairs(table, codec, brief, tokenizer, commanded, folder / "rows") for table in (train, held)]
        make_room(model, tokenizer, data)
    set_dropout(model, plan.dropout)
    log, student = TrainingLog("student" if commanded else "sft_plain", held), Student(model, tokenizer, codec)
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
    if has_rounds(settings, student.codec):
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
    student: Student,
    settings: TrainingSettings,
    folder: Path,
    train: Any,
    held: Any,
    log: TrainingLog,
    now: Stamp,
    anchor: Any = None,
) -> None:
    """Train a student on prompt/completion rows and save it; goes on from a checkpoint with the same stamp."""
    from accelerate import PartialState

    processes, work = PartialState(), folder / "checkpoints"
    trainer = make_trainer(student.model, student.tokenizer, settings, work, train, held, anchor)
    trainer.add_callback(callback(log, Student(trainer.model, student.tokenizer, student.codec)))
    with processes.main_process_first():
        checkpoint = last_checkpoint(work, now)
    trainer.train(resume_from_checkpoint=checkpoint)
    processes.wait_for_everyone()
    if processes.is_main_process:
        trained = trainer.accelerator.unwrap_model(trainer.model)
        save_trained(Student(trained, student.tokenizer, student.codec), folder)
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


def train_rounds(settings: TrainingSettings, run: RunFolder) -> pd.DataFrame:
    """Take the run's student through its rounds; stops, and keeps the last student, when the front gains no more.

    Each round keeps its samples and its student in 03_student/rounds/<number>; a cut-off round goes on where it was.
    Returns one row per command of the front and student: round, task, command, relevance, diversity (ratios to the
    teacher on validation intents), hypervolume, kept.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    folder, processes = run / "03_student", PartialState()
    if not has_rounds(settings, CommandCodec.load(folder)):
        return pd.DataFrame()
    train, held = train_rows(settings, run), read_annotated(run, "validation")
    student = Student.load(folder / "rounds" / "0")
    sampler, fronts, best = run_sampler(settings, run, student), [], 0.0
    for number in range(settings.rounds + 1):
        if number:
            with processes.main_process_first():
                if processes.is_main_process:
                    ask_round(settings, run, number, sampler.of(student), train)
            student = learn_round(settings, run, number, train, held)
        front = measure_front(sampler.of(student), held, PATH)
        (volume,) = broadcast_object_list([front_volume(front)])  # all processes must come to the same conclusion
        fronts.append(front.assign(round=number, hypervolume=volume, kept=volume > best))
        print(f"round {number}: hypervolume of the validation front {volume:.3f}", flush=True)
        if volume <= best:
            break
        best = volume
        if processes.is_main_process:
            student.save(folder)
    processes.wait_for_everyone()
    end_rounds(run)
    return pd.concat(fronts, ignore_index=True)


def end_rounds(run: RunFolder) -> None:
    """Note that the rounds of a run are complete."""
    (run / "03_student" / "rounds" / STAMP).unlink(missing_ok=True)


def ask_round(
    settings: TrainingSettings, run: RunFolder, number: int, sampler: Sampler, train: pd.DataFrame
) -> pd.DataFrame:
    """Pairs in hindsight of a round: sampled, scored, relabelled; kept in its folder, so that it is asked once."""
    file = run / "03_student" / "rounds" / str(number) / "hindsight.parquet"
    if not file.exists():
        print(f"round {number}: asking for {settings.round_sets} sets on train intents", flush=True)
        buffer = pd.concat([train, *earlier_rounds(run, number)], ignore_index=True)
        requests = round_requests(buffer, sampler.student.codec, settings.round_sets, settings.seed + number)
        samples = sampler.sample(requests, PROMPTS_PER_SET)
        write_hindsight(hindsight_rows(samples, run.settings(DistillationSettings), number), file)
    return pd.read_parquet(file)


def earlier_rounds(run: RunFolder, number: int) -> list[pd.DataFrame]:
    """Pairs in hindsight of the rounds before round `number`."""
    folder = run / "03_student" / "rounds"
    return [pd.read_parquet(folder / str(k) / "hindsight.parquet") for k in range(1, number)]


def learn_round(
    settings: TrainingSettings, run: RunFolder, number: int, train: pd.DataFrame, held: pd.DataFrame
) -> Student:
    """The student of a round: that of the round before, trained on all hindsight and twice as many teacher's pairs.

    It is not trained again where it is there already.
    """
    from accelerate import PartialState

    folder = run / "03_student" / "rounds"
    home, before = folder / str(number), folder / str(number - 1)
    if (home / "commands.json").exists():
        return Student.load(home)
    student = Student.load(before)
    hindsight = pd.concat(earlier_rounds(run, number + 1), ignore_index=True)
    hindsight = bounded(hindsight, student.codec, len(train) // 2)
    kept = train.sample(min(len(train), 2 * len(hindsight)), random_state=settings.seed + number)
    rate = plan_of(settings, train, student.tokenizer).learning_rate
    brief = settings.model_copy(update={"epochs": 1, "learning_rate": rate / 2})
    with PartialState().main_process_first():
        rows = pd.concat([seen(hindsight, settings), kept])
        data = [
            command_pairs(table, student.codec, brief, student.tokenizer, folder=home / "rows")
            for table in (rows, held)
        ]
    set_dropout(student.model, 0.0)
    anchor = Student.load(before).model if settings.kl_anchor else None
    now = stamp(brief, [before / "model.safetensors"], rows=rows)
    fit(student, brief, home, *data, TrainingLog(f"round {number}", held), now, anchor)
    return Student.load(home)


def run_sampler(settings: TrainingSettings, run: RunFolder, student: Student) -> Sampler:
    """A sampler of a student, with the rewards of the run, user-made ones included."""
    load_rewards(run, "03_student")
    annotation = run.settings(AnnotationSettings)
    rewards = list(dict.fromkeys([*annotation.rewards, "length"]))
    return Sampler(student, rewards, Encoder(annotation.encoder), seed=settings.seed)


def student_stamp(settings: TrainingSettings, run: RunFolder) -> Stamp:
    """What a student is made from: settings, the annotated pairs, and the weights of a base that is a folder."""
    base = BASE if settings.base == "recorded" else Path(settings.base)
    weights = sorted(base.glob("*.safetensors")) if settings.base else []
    return stamp(settings, [*shards_of(run / "02_annotated"), *weights])


def find_best_commands(
    settings: TrainingSettings, run: RunFolder, sampler: Sampler | None = None, held: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Ask for a grid of lengths and levels on validation intents, and keep the best command of each task.

    What a prompt achieved in its teacher's set says little about what a whole set under one command achieves, so it is
    measured. The best commands are written into the student's commands.json and card; the table of all is returned.
    """
    folder = run / "03_student"
    sampler = sampler or run_sampler(settings, run, Student.load(folder))
    measured = measure_front(sampler, read_annotated(run, "validation") if held is None else held, GRID, intents=24)
    if measured.empty:
        return measured
    best, table = best_commands(measured)
    student = Student(sampler.student.model, sampler.student.tokenizer, replace(sampler.student.codec, best=best))
    (folder / "README.md").write_text(model_card(student), encoding="utf-8")
    student.codec.save(folder)
    return table


def main() -> None:
    """Entry point of `python -m udrl_utils.training`."""
    from accelerate import PartialState

    parser = argparse.ArgumentParser(description="train the student of a run whose pairs are annotated")
    parser.add_argument("--run", type=Path, required=True, help="run folder, such as outputs/laptop")
    parser.add_argument("--plain", action="store_true", help="train the baseline without commands")
    arguments = parser.parse_args()
    run = RunFolder(arguments.run)
    if PartialState().is_main_process:
        run.lock()
    settings = run.settings(TrainingSettings)
    train_student(settings, run, commanded=not arguments.plain)
    if not arguments.plain:
        train_rounds(settings, run)
        if PartialState().is_main_process:
            find_best_commands(settings, run)


if __name__ == "__main__":
    main()
