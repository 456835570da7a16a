"""Rounds of upside-down RL: the student is asked, and learns from what it really achieved.

A round asks the student itself for prompts for train intents, under commands of all kinds. It scores them, and relabels
each with the rewards that it achieved (hindsight): whatever was asked for, "this prompt got that" is true. The student
then learns from the teacher's pairs and from all that rounds added (Srivastava et al., arXiv 1912.02877, algorithm 1).
"""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow

from udrl_utils.commands import Command, CommandCodec
from udrl_utils.encoder import Encoder
from udrl_utils.errors import RunError
from udrl_utils.filters import drop_near_duplicates, reject_reasons
from udrl_utils.guided import learn_guidance, practised
from udrl_utils.pairs import pair_id
from udrl_utils.rewards import load_rewards, read_annotated
from udrl_utils.rows import command_pairs
from udrl_utils.runs import STAMP, RunFolder, stamp, write_shard
from udrl_utils.samples import Sampler
from udrl_utils.settings import AnnotationSettings, DistillationSettings, TrainingSettings
from udrl_utils.student import Student, model_card
from udrl_utils.text import clean_intent, repeats
from udrl_utils.trainer import set_dropout
from udrl_utils.training import fit, seen, train_rows
from udrl_utils.training_log import TrainingLog

GRID = {"relevance": (0.6, 0.75, 0.9), "diversity": (None, 0.8, 0.95)}
GRID_INTENTS = 8  # per task, that each command of the grid is tried on
PROMPTS_PER_SET = 4
PASSES = 2  # over the teacher's pairs and those in hindsight, in each round


def measure_front(sampler: Sampler, teacher: pd.DataFrame) -> pd.DataFrame:
    """What sets under each command of the grid, or the nearest feasible one, achieve.

    `teacher` holds annotated pairs; the first intents of each task that is commanded both rewards are used. One row per
    command and intent: task, command, intent, relevance, diversity (ratios to the teacher's means on the same intents).
    Empty when the student knows neither reward.
    """
    codec = sampler.student.codec
    names = [name for name in ("relevance", "diversity") if name in codec.rewards]
    if not names:
        return pd.DataFrame()
    axes = {name: values for name, values in GRID.items() if name in codec.rewards}
    chosen = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    both = [task for task, edges in codec.edges.items() if set(names) <= set(edges)]
    teacher = teacher[teacher.task.isin(both)].dropna(subset=names)
    ranks = teacher.groupby("task").intent.transform(lambda column: pd.factorize(column)[0])
    teacher = teacher[ranks < GRID_INTENTS]
    keys = list(teacher[["task", "intent"]].drop_duplicates().itertuples(index=False, name=None))
    requests = [(intent, codec.feasible(Command(task, **asked))[0]) for asked in chosen for task, intent in keys]
    scored = sampler.sample(requests, PROMPTS_PER_SET)
    scored["command"] = scored.set.map(lambda number: requests[number][1])
    achieved = scored.groupby(["task", "command", "intent"], sort=False)[names].mean()
    ratios = achieved / teacher.groupby("task")[names].mean().reindex(achieved.index, level="task")
    return ratios.reset_index()


def best_commands(measured: pd.DataFrame) -> tuple[dict[str, dict[str, float]], pd.DataFrame]:
    """What each task's best command asks for, the one whose smaller ratio is highest; and the table that says so."""
    names = [name for name in ("relevance", "diversity") if name in measured]
    table = measured.groupby(["task", "command"], sort=False)[names].mean()
    table["smaller"] = table.min(axis=1)
    table = table.reset_index().sort_values(["task", "smaller"], ascending=[True, False], kind="stable")
    best = {row.task: row.command.asked for row in table.drop_duplicates("task").itertuples()}
    return best, table.reset_index(drop=True)


def round_size(settings: TrainingSettings, train: pd.DataFrame) -> int:
    """Sets that a round asks for: `round_sets`, at most half as many as there are pairs."""
    return min(settings.round_sets, len(train) // 2)


def round_requests(train: pd.DataFrame, codec: CommandCodec, sets: int, seed: int) -> list[tuple[str, Command]]:
    """What a round asks for: `sets` train intents, each with a command.

    A command asks for some of the rewards: any level, and a length that a pair of its task has. An infeasible one is
    moved to the nearest feasible one.
    """
    rng = random.Random(f"round {seed}")
    intents = {task: sorted(rows.intent.unique()) for task, rows in train.groupby("task")}
    lengths = {task: rows.length.astype(int).tolist() for task, rows in train.groupby("task")}
    requests = []
    for _ in range(sets):
        task = rng.choice(list(intents))
        known = codec.rewards_of(task)
        names = rng.sample(known, rng.randint(min(1, len(known)), len(known)))
        asked = {name: rng.choice(lengths[task]) if name == "length" else rng.random() for name in names}
        requests.append((rng.choice(intents[task]), codec.feasible(Command(task, **asked))[0]))
    return requests


def hindsight_rows(samples: pd.DataFrame, settings: DistillationSettings, number: int) -> pd.DataFrame:
    """Samples as annotated pairs of the train split, filtered and freed of near-duplicates like a teacher's prompts.

    Prompts that repeat words are dropped too, unless all do: a cosine calls "koi pond with a koi pond" very relevant,
    and a student that learns from it writes more of the kind.
    Raises: RunError when nothing is left.
    """
    rows = samples[reject_reasons(samples, settings) == ""]
    again = [repeats(prompt, intent) for prompt, intent in zip(rows.prompt, rows.intent, strict=True)]
    rows = rows if all(again) else rows[~pd.Series(again, rows.index, dtype=bool)]
    kept = [
        index
        for _, group in rows.groupby(["task", "intent", "set"], sort=False)
        for index in group.index[drop_near_duplicates(list(group.prompt), settings.near_duplicate)]
    ]
    if not kept:
        raise RunError(
            f"round {number} wrote {len(samples)} prompts and filtering left none; the student stays as it was"
        )
    rows = rows.loc[kept].drop(columns=["set", *samples.filter(regex="^asked_")])
    keys = [pair_id(f"round {number}", row.task, row.intent, row.prompt) for row in rows.itertuples()]
    return rows.assign(pair_id=keys, split="train", teacher=f"round {number}", intent=rows.intent.map(clean_intent))


def write_hindsight(rows: pd.DataFrame, file: Path) -> None:
    """Keep what a round asked for, so that a round that was cut off does not ask again."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_shard(file, pyarrow.Table.from_pandas(rows, preserve_index=False))


def train_rounds(settings: TrainingSettings, run: RunFolder) -> None:
    """Take the run's student through its rounds, and let it learn guidance.

    Each round keeps its samples and its student in 03_student/rounds/<number>; a cut-off round goes on where it was.
    """
    from accelerate import PartialState

    folder, processes = run / "03_student", PartialState()
    train, held = train_rows(settings, run), read_annotated(run, "validation")
    student = Student.load(folder / "rounds" / "0" if settings.rounds else folder)
    sampler = run_sampler(settings, run, student)
    for number in range(1, settings.rounds + 1):
        if processes.is_main_process:
            writer = sampler.of(student, guidance=settings.learnt_guidance, candidates=1)
            ask_round(settings, run, number, writer, train)
        processes.wait_for_everyone()
        student = learn_round(settings, run, number, train, held)
    if processes.is_main_process:
        requests = round_requests(train, student.codec, round_size(settings, train), settings.seed)
        learn_guidance(settings, student, practised(settings, student, requests))[0].save(folder)
    processes.wait_for_everyone()
    end_rounds(run)


def ask_round(settings: TrainingSettings, run: RunFolder, number: int, sampler: Sampler, train: pd.DataFrame) -> None:
    """Keep a round's pairs in hindsight in its folder: sampled, scored, relabelled; a round is asked once."""
    file = run / "03_student" / "rounds" / str(number) / "hindsight.parquet"
    if file.exists():
        return
    requests = round_requests(train, sampler.student.codec, round_size(settings, train), settings.seed + number)
    print(f"round {number}: asking for {len(requests)} sets on train intents", flush=True)
    samples = sampler.sample(requests, PROMPTS_PER_SET)
    write_hindsight(hindsight_rows(samples, run.settings(DistillationSettings), number), file)


def earlier_rounds(run: RunFolder, number: int) -> list[pd.DataFrame]:
    """Pairs in hindsight of the rounds before round `number`."""
    folder = run / "03_student" / "rounds"
    return [pd.read_parquet(folder / str(k) / "hindsight.parquet") for k in range(1, number)]


def learn_round(
    settings: TrainingSettings, run: RunFolder, number: int, train: pd.DataFrame, held: pd.DataFrame
) -> Student:
    """The student of a round: that of the round before, trained on all hindsight and at most twice as many pairs of
    the teacher.

    It is not trained again where it is there already.
    """
    from accelerate import PartialState

    folder = run / "03_student" / "rounds"
    home, before = folder / str(number), folder / str(number - 1)
    if (home / "commands.json").exists():
        return Student.load(home)
    student = Student.load(before)
    hindsight = seen(pd.concat(earlier_rounds(run, number + 1), ignore_index=True), settings)
    known = train.sample(min(len(train), 2 * len(hindsight)), random_state=settings.seed + number)
    rows = pd.concat([hindsight, known], ignore_index=True)
    brief = settings.model_copy(update={"epochs": PASSES, "learning_rate": settings.learning_rate / 2})
    with PartialState().main_process_first():
        data = [
            command_pairs(table, student.codec, brief, student.tokenizer, reading=reading, folder=home / "rows")
            for table, reading in ((rows, True), (held, False))
        ]
    set_dropout(student.model, 0.0)
    now = stamp(brief, [before / "model.safetensors"], rows=rows)
    fit(student, brief, home, *data, TrainingLog(f"round {number}", held), now)
    return Student.load(home)


def end_rounds(run: RunFolder) -> None:
    """Note that the rounds of a run are complete."""
    (run / "03_student" / "rounds" / STAMP).unlink(missing_ok=True)


def run_sampler(settings: TrainingSettings, run: RunFolder, student: Student) -> Sampler:
    """A sampler of a student, with the rewards of the run, user-made ones included."""
    load_rewards(run, "03_student")
    annotation = run.settings(AnnotationSettings)
    rewards = list(dict.fromkeys([*annotation.rewards, "length"]))
    return Sampler(student, rewards, Encoder(annotation.encoder), seed=settings.seed)


def find_best_commands(run: RunFolder, sampler: Sampler, held: pd.DataFrame) -> pd.DataFrame:
    """Ask for a grid of levels on the intents of `held`, and keep the best command of each task.

    What a prompt achieved in its teacher's set says little about what a whole set under one command achieves, so it is
    measured. The best commands are written into the student's commands.json and card; the table of all is returned.
    """
    measured = measure_front(sampler, held)
    if measured.empty:
        return measured
    best, table = best_commands(measured)
    folder, asked = run / "03_student", sampler.student
    student = Student(asked.model, asked.tokenizer, replace(asked.codec, best=best))
    (folder / "README.md").write_text(model_card(student), encoding="utf-8")
    student.codec.save(folder)
    return table
