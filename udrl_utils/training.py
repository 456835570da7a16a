"""Training: a run's annotated pairs become a student, rounds take it further, and its best commands are found.

`python -m udrl_utils.training --run outputs/<run>` trains as the notebook does, under `accelerate launch` too.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas

from udrl_utils.commands import CommandCodec
from udrl_utils.encoder import Encoder
from udrl_utils.gpt2 import base_tokenizer, new_student, pretrained_student, train_tokenizer, widen
from udrl_utils.machine import pool, quietly, seed_everything, shares
from udrl_utils.rewards import load_rewards, read_annotated
from udrl_utils.rounds import GRID, PATH, best_commands, bounded, collect, front_volume, hindsight_rows, measure_front
from udrl_utils.rows import command_pairs
from udrl_utils.runs import RunFolder, write_shard
from udrl_utils.samples import Sampler
from udrl_utils.settings import AnnotationSettings, DistillationSettings, SettingsError, TrainingSettings
from udrl_utils.student import Student
from udrl_utils.tasks import HELD_OUT
from udrl_utils.trainer import (
    Schedule,
    TrainingLog,
    callback,
    make_trainer,
    schedule,
    set_dropout,
    token_counts,
    tokenized,
)

if TYPE_CHECKING:
    from datasets import Dataset

    Live = Callable[[pandas.DataFrame], None]

JUDGED = {"relevance", "diversity"}  # rewards that rounds are judged by
MOST_POSITIONS = 1024  # tokens; a pair that has more is left out


def train_rows(settings: TrainingSettings, run: RunFolder) -> pandas.DataFrame:
    """Annotated pairs to train on: the train split, less the lengths that its last task is not to see."""
    return seen(read_annotated(run, "train"), settings)


def seen(rows: pandas.DataFrame, settings: TrainingSettings) -> pandas.DataFrame:
    """The rows without those lengths of the last task that are kept from it as a probe."""
    if "length" not in rows:
        return rows
    unseen = (rows.task == max(rows.task)) & rows.length.isin(settings.unseen_lengths)
    return rows[~unseen].reset_index(drop=True)


def fit_codec(settings: TrainingSettings, run: RunFolder) -> CommandCodec:
    """The codec of a run, fitted on what it is trained on. There are no rounds where no task is commanded diversity.

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
    codec = CommandCodec.fit(train_rows(settings, run), rewards, settings.bins)
    if settings.rounds and not JUDGED.issubset(codec.rewards):
        print(f"no rounds: only {', '.join(codec.rewards)} can be commanded, and rounds are judged by diversity too")
    sampling = settings.model_dump(include={"temperature", "min_p", "guidance"})
    return replace(codec, form=settings.command_form, place=settings.command_place, sampling=sampling)


def train_student(
    settings: TrainingSettings,
    run: RunFolder,
    commanded: bool = True,
    live: Live | None = None,
) -> TrainingLog:
    """Train on the run's annotated pairs and save a Hugging Face folder; resumes from the last checkpoint exactly.

    commanded=False trains the plain baseline: the same pairs, steps and shape, and no reward in any prefix. It goes
    to 03_student/sft_plain. The folder of a student is only replaced once its successor is complete. A student whose
    rounds were cut off is not trained again.
    """
    rounds, mark = run / "03_student" / "rounds", fingerprint(settings, run)
    if commanded and (rounds / "unfinished").exists() and (rounds / "unfinished").read_text() == mark:
        return TrainingLog.load(rounds / "0" / "training_log.json")
    from accelerate import PartialState

    processes = PartialState()
    seed_everything(settings.seed)
    codec, train, held = fit_codec(settings, run), train_rows(settings, run), read_annotated(run, "validation")
    model, tokenizer, plan = untrained(settings, codec, train)
    print(plan.reason, flush=True)
    settings = plan.of(settings)
    folder = run / "03_student" if commanded else run / "03_student" / "sft_plain"
    tables, place = (train, held), folder / "rows"
    with processes.main_process_first():  # the others find the rows that it has laid out
        data = [command_pairs(table, codec, settings, tokenizer, commanded, place) for table in tables]
        make_room(model, tokenizer, data)
    log = TrainingLog("student" if commanded else "sft_plain", held, live)
    fit(Student(model, tokenizer, codec), settings, folder, *data, log, dropout=plan.dropout)
    if commanded and processes.is_main_process:
        shutil.rmtree(rounds, ignore_errors=True)
        if settings.rounds and JUDGED.issubset(codec.rewards):
            Student(model, tokenizer, codec).save(rounds / "0")
            log.save(rounds / "0" / "training_log.json")
            (rounds / "unfinished").write_text(mark)
    processes.wait_for_everyone()
    return log


def untrained(settings: TrainingSettings, codec: CommandCodec, train: pandas.DataFrame) -> tuple[Any, Any, Schedule]:
    """What training starts from, and how it goes: a model, its tokenizer, and the schedule that suits the rows.

    The model is the base, or a new GPT-2 with the words of the rows.
    """
    if settings.base:
        tokenizer = base_tokenizer(settings.base)
    else:
        tokenizer = train_tokenizer([*train.intent, *train.prompt], settings.vocab_size, codec.tokens())
    plan = plan_of(settings, train, tokenizer)
    if settings.base:
        return *pretrained_student(settings.base, codec, settings.n_positions, keep=not plan.embeddings), plan
    return new_student(settings, tokenizer), tokenizer, plan


def plan_of(settings: TrainingSettings, train: pandas.DataFrame, tokenizer: Any) -> Schedule:
    """The schedule that suits the amount of training rows."""
    parts = (list(train.prompt[start : start + 10_000]) for start in range(0, len(train), 10_000))
    tokens = sum(len(ids) for texts in parts for ids in tokenizer(texts, add_special_tokens=False).input_ids)
    return schedule(settings, len(train), tokens)


def make_room(model: Any, tokenizer: Any, data: Sequence[Dataset]) -> None:
    """Widen a model's context to the longest of its prompt/completion rows, in steps of 64 tokens.

    Raises: SettingsError when the model cannot take as many.
    """
    positions = model.config.max_position_embeddings
    lengths = [token_counts(tokenized(rows, tokenizer, max(positions, MOST_POSITIONS)))[0] for rows in data]
    longest = max(max(found, default=0) for found in lengths)
    if longest > positions:
        needed = 64 * math.ceil(longest / 64)
        print(f"the longest pair has {longest} tokens: a context of {needed} instead of {positions}", flush=True)
        widen(model, needed)


def train_both(settings: TrainingSettings, run: RunFolder, live: Live | None = None) -> list[TrainingLog]:
    """Train the student and, where the settings want it, the plain baseline; on a CPU side by side, on half of it each.

    Returns their logs in this order. `live` shows the student's.
    """
    if not settings.plain_sft:
        return [train_student(settings, run, live=live)]
    count, threads = shares(2)
    if count == 1:
        return [train_student(settings, run, live=live), train_student(settings, run, commanded=False)]
    import torch

    before = torch.get_num_threads()
    with pool(1, quietly, threads) as beside:
        plain = beside.submit(train_student, settings, run, commanded=False)
        torch.set_num_threads(threads)
        try:
            return [train_student(settings, run, live=live), plain.result()]
        finally:
            torch.set_num_threads(before)


def fit(
    student: Student,
    settings: TrainingSettings,
    folder: Path,
    train: Any,
    held: Any,
    log: TrainingLog,
    dropout: float = 0.0,
    **anchor: Any,
) -> None:
    """Train a student on prompt/completion rows and save it; a training that was cut off is taken up again."""
    from accelerate import PartialState
    from transformers import PrinterCallback

    processes, work = PartialState(), folder / "checkpoints"
    set_dropout(student.model, dropout)
    trainer = make_trainer(student.model, student.tokenizer, settings, work, train, held, **anchor)
    trainer.remove_callback(PrinterCallback)  # the training log prints instead
    trainer.add_callback(callback(log, Student(trainer.model, student.tokenizer, student.codec)))
    with processes.main_process_first():
        checkpoint = last_checkpoint(work, settings)
    trainer.train(resume_from_checkpoint=checkpoint)
    processes.wait_for_everyone()
    if processes.is_main_process:
        trained = trainer.accelerator.unwrap_model(trainer.model)
        Student(trained, student.tokenizer, student.codec).save(folder)
        shutil.rmtree(work)
        shutil.rmtree(folder / "rows", ignore_errors=True)
    processes.wait_for_everyone()


def last_checkpoint(work: Path, settings: TrainingSettings) -> str | None:
    """The newest checkpoint made with the same settings; those of other settings, and torn ones, are removed."""
    from transformers.trainer_utils import get_last_checkpoint

    note = work / "settings.json"
    if note.exists() and note.read_text() != settings.model_dump_json():
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    note.write_text(settings.model_dump_json())
    for checkpoint in work.glob("checkpoint-*"):
        if not (checkpoint / "trainer_state.json").exists():  # written last
            shutil.rmtree(checkpoint)
    return get_last_checkpoint(str(work))


def train_rounds(settings: TrainingSettings, run: RunFolder) -> pandas.DataFrame:
    """Take the run's student through its rounds; stops, and keeps the last student, when the front gains no more.

    Each round keeps its samples and its student in 03_student/rounds/<number>; a cut-off round goes on where it was.
    Returns one row per command of the front and student: round, task, command, relevance, diversity (ratios to the
    teacher on validation intents), hypervolume, kept.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    folder, processes = run / "03_student", PartialState()
    if not settings.rounds or not JUDGED.issubset(CommandCodec.load(folder).rewards):
        return pandas.DataFrame()
    held, sampler = read_annotated(run, "validation"), run_sampler(settings, run, folder / "rounds" / "0")
    tables, best = [], 0.0
    for number in range(settings.rounds + 1):
        home = folder / "rounds" / str(number)
        if number and not (home / "commands.json").exists():
            train_round(settings, run, number, sampler)
        student = Student.load(home)
        front = measure_front(sampler.of(student), held, PATH)
        (volume,) = broadcast_object_list([front_volume(front)])  # all processes must come to the same conclusion
        tables.append(front.assign(round=number, hypervolume=volume, kept=volume > best))
        print(f"round {number}: hypervolume of the validation front {volume:.3f}", flush=True)
        if volume <= best:
            break
        best = volume
        if processes.is_main_process:
            student.save(folder)
    processes.wait_for_everyone()
    (folder / "rounds" / "unfinished").unlink(missing_ok=True)
    return pandas.concat(tables, ignore_index=True)


def train_round(settings: TrainingSettings, run: RunFolder, number: int, sampler: Sampler) -> None:
    """One round: ask, score, relabel, train on what was achieved with twice as many of the teacher's pairs."""
    import pyarrow
    from accelerate import PartialState

    folder, processes = run / "03_student" / "rounds", PartialState()
    home, before = folder / str(number), folder / str(number - 1)
    train, held = train_rows(settings, run), read_annotated(run, "validation")
    student = Student.load(before)
    codec = student.codec
    file = home / "hindsight.parquet"
    earlier = [pandas.read_parquet(folder / str(k) / "hindsight.parquet") for k in range(1, number)]
    with processes.main_process_first():
        if not file.exists():
            print(f"round {number}: asking for {settings.round_sets} sets on train intents", flush=True)
            buffer = pandas.concat([train, *earlier], ignore_index=True)
            samples = collect(sampler.of(student), buffer, settings.round_sets, settings.seed + number)
            rows = hindsight_rows(samples, run.settings(DistillationSettings), number)
            home.mkdir(parents=True, exist_ok=True)
            write_shard(file, pyarrow.Table.from_pandas(rows, preserve_index=False))
    hindsight = pandas.concat([*earlier, pandas.read_parquet(file)], ignore_index=True)
    hindsight = bounded(hindsight, codec, len(train) // 2)
    kept = train.sample(min(len(train), 2 * len(hindsight)), random_state=settings.seed + number)
    hindsight = seen(hindsight, settings)
    rate = plan_of(settings, train, student.tokenizer).learning_rate
    shorter = settings.model_copy(update={"epochs": 1, "learning_rate": rate / 2})
    anchor = Student.load(before).model if settings.kl_anchor else None
    tables, place = (pandas.concat([hindsight, kept]), held), home / "rows"
    with processes.main_process_first():
        data = [command_pairs(table, codec, shorter, student.tokenizer, folder=place) for table in tables]
    fit(student, shorter, home, *data, TrainingLog(f"round {number}", held), anchor=anchor)


def run_sampler(settings: TrainingSettings, run: RunFolder, folder: Path) -> Sampler:
    """A sampler of the student in a folder, with the rewards of the run, user-made ones included."""
    load_rewards(run)
    annotation = run.settings(AnnotationSettings)
    rewards = list(dict.fromkeys([*annotation.rewards, "length"]))
    return Sampler(Student.load(folder), rewards, Encoder(annotation.encoder), seed=settings.seed)


def fingerprint(settings: TrainingSettings, run: RunFolder) -> str:
    """What a student depends on: its settings and the annotated pairs."""
    digest = hashlib.blake2b(settings.model_dump_json().encode(), digest_size=16)
    for file in sorted((run / "02_annotated").glob("*.parquet")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def find_best_commands(run: RunFolder, settings: TrainingSettings) -> pandas.DataFrame:
    """Ask for a grid of lengths and levels on validation intents, and keep the best command of each task.

    What a prompt achieved in its teacher's set says little of what a whole set under one command achieves; so it is
    measured. The best commands are written into the student's commands.json; the table of all is returned.
    """
    folder = run / "03_student"
    sampler = run_sampler(settings, run, folder)
    measured = measure_front(sampler, read_annotated(run, "validation"), GRID, intents=24)
    if measured.empty:
        return measured
    best, table = best_commands(measured)
    student = sampler.student
    Student(student.model, student.tokenizer, replace(student.codec, best=best)).save(folder)
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
            find_best_commands(run, settings)


if __name__ == "__main__":
    main()
