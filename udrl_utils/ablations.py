"""Ablations: students trained with one thing left out; and a student beside the base that it started from.

A run whose pairs are annotated goes in; one row per variant and seed comes out, from small runs of their own in
04_analysis/ablations. The run itself is not changed.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from udrl_utils.commands import CommandCodec
from udrl_utils.encoder import Encoder
from udrl_utils.errors import SettingsError
from udrl_utils.evaluation import calibration_metrics, resamples, sample_calibration, test_intents
from udrl_utils.gpt2 import pretrained_student
from udrl_utils.machine import device_and_dtype, pool, quietly, seed_everything, shares
from udrl_utils.rewards import load_rewards, read_annotated
from udrl_utils.rounds import PASSES, PROMPTS_PER_SET, round_size, train_rounds
from udrl_utils.runs import RunFolder, digest, renew, write_json
from udrl_utils.samples import Sampler
from udrl_utils.settings import AnalysisSettings, AnnotationSettings, IntervalSettings, TrainingSettings
from udrl_utils.student import Student
from udrl_utils.training import student_stamp, train_student

MEASURING = {"ablation_rows", "analysis_intents", "samples_per_intent"}  # what a measured trial depends on besides
INTENTS = 8  # test intents per task that a variant is measured on


@dataclass(frozen=True)
class Variant:
    """What differs: training settings, how prompts are sampled, the share of the pairs, what is done to them, and
    whether as many rows are passed over as a round would take."""

    training: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    share: float = 1.0
    change: Callable[[pd.DataFrame, AnnotationSettings], pd.DataFrame] = lambda rows, _: rows
    more: bool = False


def shuffled(rows: pd.DataFrame, annotation: AnnotationSettings) -> pd.DataFrame:
    """Rewards shuffled among the pairs of a task: commands that mean nothing."""
    mixed = rows.copy()
    for _, group in rows.groupby("task"):
        other = group.sample(frac=1, random_state=0)
        mixed.loc[group.index, annotation.rewards] = other[annotation.rewards].to_numpy()
    return mixed


def best_fifth(rows: pd.DataFrame, annotation: AnnotationSettings) -> pd.DataFrame:
    """The fifth of the pairs with the highest mean level: cloning of the best, without commands."""
    levels = CommandCodec.fit(rows, annotation.rewards, 10).achieved_levels(rows)
    return rows.loc[levels.mean(axis=1).nlargest(len(rows) // 5).index].sort_index()


VARIANTS = {
    "full": Variant(),
    "one candidate": Variant(sampling={"candidates": 1}),
    "one candidate, guidance": Variant(sampling={"candidates": 1, "guidance": 3.0}),
    "learnt guidance": Variant({"learnt_guidance": 3.0}),
    "no commands": Variant({"command_form": "none"}),
    "best fifth, no commands": Variant({"command_form": "none"}, change=best_fifth),
    "shuffled commands": Variant(change=shuffled),
    "commands as text": Variant({"command_form": "text"}),
    "commands after the intent": Variant({"command_place": "last"}),
    "no command dropout": Variant({"command_dropout": 0.0}),
    "no horizon": Variant({"horizon": 0}),
    "no word swaps": Variant({"word_swaps": 0.0}),
    "from scratch": Variant({"base": ""}),
    "from scratch, no copying circuit": Variant({"base": "", "copy_init": False}),
    "3 levels": Variant({"bins": 3}),
    "30 levels": Variant({"bins": 30}),
    "half of the pairs": Variant(share=0.5),
    "an eighth of the pairs": Variant(share=0.125),
    "one round": Variant({"rounds": 1}),
    "more passes in place of a round": Variant(more=True),
    "two rounds": Variant({"rounds": 2}),
}


def variants_of(settings: AnalysisSettings) -> list[str]:
    """Names of the variants asked for. Raises: SettingsError for one that is not known."""
    names = list(VARIANTS) if settings.ablations == ["all"] else settings.ablations
    for name in names:
        if name not in VARIANTS:
            raise SettingsError(f"parameter ablations: {name!r} is unknown; allowed are all, {', '.join(VARIANTS)}")
    return names


def ablate(settings: AnalysisSettings, run: RunFolder) -> pd.DataFrame:
    """One row per variant and seed: Spearman of each reward and the share of lengths within 1 word.

    On a CPU as many variants are trained side by side as it has threads.
    """
    trials = [(name, seed) for name in variants_of(settings) for seed in range(settings.ablation_seeds)]
    count, threads = shares(len(trials))
    rows = []
    with pool(count, quietly, threads) as processes:
        # where one fails, those that wait behind it are not started
        measured = processes.map(partial(measure, settings, run), *zip(*trials, strict=True))
        for (name, seed), found in zip(trials, measured, strict=True):
            rows.append({"variant": name, "seed": seed, **found})
            print(name, seed, *(f"{metric}={value:.3f}" for metric, value in found.items()), flush=True)
    return pd.DataFrame(rows)


def folder_of(run: RunFolder, name: str, seed: int) -> Path:
    """The small run of a variant and seed; its student is in 03_student."""
    return run / "04_analysis" / "ablations" / f"{re.sub('[^a-z0-9]+', '_', name)}-{seed}"


def measure(settings: AnalysisSettings, run: RunFolder, name: str, seed: int) -> dict[str, float]:
    """How the commands of a variant are obeyed; kept in the trial's folder as soon as it is known."""
    home, variant = RunFolder(folder_of(run, name, seed)), VARIANTS[name]
    differs = [variant.training, variant.sampling, variant.share, variant.more]
    measuring = settings.model_dump(include=MEASURING) | settings.sampling()
    now = student_stamp(run.settings(TrainingSettings), run)
    now["read"] |= {"the variant": digest(differs), "the parameters of the analysis": digest(measuring)}
    renew(home.path, now)
    file = home / "measured.json"
    if not file.exists():
        write_json(file, try_out(settings, run, variant, seed, home))
    return json.loads(file.read_text())


def try_out(
    settings: AnalysisSettings, run: RunFolder, variant: Variant, seed: int, home: RunFolder
) -> dict[str, float]:
    """Train one variant in a run of its own, and measure how its commands are obeyed."""
    load_rewards(run, "04_analysis")
    annotation = run.settings(AnnotationSettings)
    annotated, budget = read_annotated(run), settings.ablation_rows
    train, others = annotated[annotated.split == "train"], annotated[annotated.split != "train"]
    train = variant.change(train.sample(min(len(train), budget), random_state=seed), annotation)
    train = train.sample(frac=variant.share, random_state=seed)
    (home / "02_annotated").mkdir(parents=True, exist_ok=True)
    for file in ("run.json", "02_annotated/_rewards.py"):
        shutil.copy(run / file, home / file)
    pd.concat([train, others]).to_parquet(home / "02_annotated" / "part-00000.parquet", index=False)
    training = run.settings(TrainingSettings).model_copy(update={"rounds": 0, **variant.training, "seed": seed})
    prompts = PROMPTS_PER_SET * round_size(training, train)
    passes = budget / len(train) + (PASSES * (1 + prompts / len(train)) if variant.more else 0)
    training = training.model_copy(update={"epochs": passes})
    train_student(training, home)
    train_rounds(training, home)
    student = Student.load(home / "03_student")
    sampling = {**settings.sampling(), **variant.sampling, "seed": seed}
    sampler = Sampler(student, annotation.rewards, Encoder(annotation.encoder), **sampling)
    few = {task: pool[:INTENTS] for task, pool in test_intents(annotated, settings).items()}
    found = calibration_metrics(sample_calibration(sampler, few, settings), settings)["all"]
    metrics = {f"{reward} Spearman": values["spearman"] for reward, values in found.items()}
    return metrics | ({"length within 1": found["length"]["within_1"]} if "length" in found else {})


def ask_before_and_after(
    sampler: Sampler,
    calibration: pd.DataFrame,
    intents: dict[str, list[str]],
    settings: AnalysisSettings,
    run: RunFolder,
) -> pd.DataFrame | None:
    """Samples under one command at a time, as `sample_calibration` makes them, with a column `model`.

    `model` is base, student (its calibration as it is) or shuffled, which is left out where there is none. Base and
    shuffled are asked on 8 test intents per task. None, and a line that says so, for a student without a base.
    """
    training = run.settings(TrainingSettings)
    if not training.base:
        print("no before and after: base='', so this student was trained from scratch", flush=True)
        return None
    seed_everything(settings.seed)  # the codec's tokens get random embeddings
    model, tokenizer = pretrained_student(training.base, sampler.student.codec, training.n_positions)
    codec = replace(sampler.student.codec, reads=False)
    base = Student(model.to(device_and_dtype()[0]), tokenizer, codec)
    few = {task: pool[:INTENTS] for task, pool in intents.items()}
    tables = {"base": sample_calibration(sampler.of(base), few, settings), "student": calibration}
    if "shuffled commands" in variants_of(settings):
        mixed = Student.load(folder_of(run, "shuffled commands", 0) / "03_student")
        tables["shuffled"] = sample_calibration(sampler.of(mixed), few, settings)
    return pd.concat([table.assign(model=name) for name, table in tables.items()], ignore_index=True)


def obedience(samples: pd.DataFrame, settings: IntervalSettings) -> dict[str, dict[str, dict[str, Any]]]:
    """How well each model obeys: {reward: {model: {spearman, low, high}}}, of length `within_1` too.

    Spearman's correlation of commanded and achieved, with its 95% bootstrap interval; sets are resampled, since the
    prompts of one set depend on each other. Ranks are those within a task: tasks that usually get longer prompts are
    asked for longer ones too, which a model without commands would seem to obey. Where all prompts achieve the same,
    no command is obeyed: 0.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for (name, model), rows in samples.groupby(["reward", "model"], sort=False):
        asked, rows = f"asked_{name}", rows.dropna(subset=[name])
        ranks = rows.groupby("task")[[asked, name]].rank(pct=True)
        found.setdefault(name, {})[model] = spearman_interval(ranks.assign(set=rows.set).to_numpy(float), settings)
        if name == "length":
            found[name][model]["within_1"] = float(((rows[asked] - rows[name]).abs() <= 1).mean())
    return found


def spearman_interval(rows: Any, settings: IntervalSettings) -> dict[str, float]:
    """Spearman's correlation with its 95% interval, of an array with columns commanded, achieved and set."""

    def spearman(part: Any) -> float:
        ranks = pd.DataFrame(part[:, :2]).rank().to_numpy()
        return float(np.corrcoef(ranks.T)[0, 1]) if np.ptp(ranks, axis=0).all() else 0.0

    rows = rows[np.argsort(rows[:, 2], kind="stable")]
    sets = np.split(rows, np.unique(rows[:, 2], return_index=True)[1][1:])
    draws = resamples(len(sets), settings)
    low, high = np.percentile([spearman(np.concatenate([sets[k] for k in draw])) for draw in draws], [2.5, 97.5])
    return {"spearman": spearman(rows), "low": float(low), "high": float(high)}
