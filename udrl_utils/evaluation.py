"""Evaluation on test intents: are commands obeyed, and how does the student compare with teacher and baselines?

A sampler and annotated pairs go in; tables of samples and metrics with 95% intervals come out. How a student was
trained is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from udrl_utils.commands import Command
from udrl_utils.errors import RunError
from udrl_utils.ontology import noun_heads, plural
from udrl_utils.rewards import annotate, load_rewards, read_annotated
from udrl_utils.runs import RunFolder
from udrl_utils.samples import Sampler
from udrl_utils.settings import AnnotationSettings, DeploymentSettings, IntervalSettings, MeasuringSettings
from udrl_utils.student import Student, ready_facts
from udrl_utils.text import clean_intent, share, stems, words

if TYPE_CHECKING:
    from udrl_utils.encoder import Embed

INTENTS_PER_LENGTH = 4
PROMPT_METRICS = ("relevance", "diversity", "non_words", "broken", "fluency")  # a set's are the means of its prompts'
SET_METRICS = (*PROMPT_METRICS, "words", "overlap", "self_bleu", "distinct_2", "vendi")


def resamples(count: int, settings: IntervalSettings) -> np.ndarray:
    """Places 0 to count - 1 drawn with replacement, shape (bootstrap_samples, count)."""
    return np.random.default_rng(settings.seed).integers(0, count, (settings.bootstrap_samples, count))


def interval(values: Sequence[float], settings: IntervalSettings) -> dict[str, float]:
    """Mean with its 95% bootstrap interval (percentiles of resampled means); NaN where there are no values."""
    values = np.asarray(values, dtype=float)
    if not len(values):
        return dict.fromkeys(("mean", "low", "high"), float("nan"))
    low, high = np.percentile(values[resamples(len(values), settings)].mean(axis=1), [2.5, 97.5])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def ratio_interval(ours: np.ndarray, theirs: np.ndarray, settings: IntervalSettings) -> dict[str, float]:
    """Ratio of two means with its 95% bootstrap interval, entries resampled in pairs."""
    draws = resamples(len(ours), settings)
    low, high = np.percentile(np.nanmean(ours[draws], axis=1) / np.nanmean(theirs[draws], axis=1), [2.5, 97.5])
    return {"mean": float(np.nanmean(ours) / np.nanmean(theirs)), "low": float(low), "high": float(high)}


def written(value: dict[str, float], form: str = ".3g") -> str:
    """A mean with its interval, such as 0.51 [0.48, 0.53]."""
    return f"{value['mean']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"


def test_intents(annotated: pd.DataFrame, settings: MeasuringSettings) -> dict[str, list[str]]:
    """Up to `analysis_intents` test intents per task that the teacher wrote a set of prompts for.

    Of a task that has no sets, because each intent has one prompt, any test intents.
    Raises: RunError when a task has fewer than two.
    """
    chosen = {}
    for task, rows in annotated[annotated.split == "test"].groupby("task", sort=False):
        sizes = rows.groupby("intent").size()
        sets = sizes[sizes > 1]
        intents = sorted((sets if len(sets) else sizes).index, key=lambda intent: share(intent, settings.seed))
        if len(intents) < 2:
            raise RunError(
                f"{task} has {len(intents)} test intents with two prompts or more, at least 2 are needed; "
                "give more intents or pairs, or raise test_fraction"
            )
        chosen[task] = intents[: settings.analysis_intents]
    return chosen


@dataclass(frozen=True)
class Chosen:
    """A student to measure, with what its prompts are scored with and test intents by task."""

    student: Student
    rewards: list[str]
    encoder: str
    intents: dict[str, list[str]]


def chosen_student(run: RunFolder, settings: DeploymentSettings) -> Chosen:
    """The student of a run, or the shipped one with the intents that it brings along. Raises: RunError without one."""
    if settings.student:
        student, facts = Student.load("ready"), ready_facts()
        few = {task: intents[: settings.analysis_intents] for task, intents in facts["intents"].items()}
        return Chosen(student, student.codec.rewards, facts["encoder"], few)
    load_rewards(run, "07_deployment")
    scoring, student = run.settings(AnnotationSettings), Student.load(run / "03_student")
    return Chosen(student, scoring.rewards, scoring.encoder, test_intents(read_annotated(run), settings))


def sample_calibration(sampler: Sampler, intents: dict[str, list[str]], settings: MeasuringSettings) -> pd.DataFrame:
    """Samples under one command at a time: the lengths that the task's train pairs usually have, every level of every
    other reward that is commanded for the task.

    Column `reward` says which one was commanded. Diversity is asked for in sets, for a third of the intents.
    """
    codec, tables = sampler.student.codec, []
    for name in codec.rewards:
        n = settings.samples_per_intent if name == "diversity" else 1
        requests = []
        for task, pool in intents.items():
            if name not in codec.rewards_of(task):
                continue
            if name == "length":
                lengths = np.repeat(codec.usual_lengths(task), INTENTS_PER_LENGTH).tolist()
                asked = [(pool[k % len(pool)], length) for k, length in enumerate(lengths)]
            else:
                chosen = pool[: max(2, len(pool) // 3)] if n > 1 else pool
                asked = [(intent, codec.level_of(k)) for k in range(codec.bins) for intent in chosen]
            requests += [(intent, Command(task, **{name: value})) for intent, value in asked]
        tables.append(sampler.sample(requests, n, reward=name))
        print(f"calibration of {name}: {len(tables[-1])} prompts", flush=True)
    return pd.concat(tables, ignore_index=True)


def calibration_metrics(samples: pd.DataFrame, settings: MeasuringSettings) -> dict[str, dict[str, dict[str, Any]]]:
    """Commanded against achieved, per task and over all: {task: {reward: {spearman, ...}}}."""
    parts = dict(list(samples.groupby("task", sort=False))) | {"all": samples}
    return {
        task: {name: _calibration(group, name, settings) for name, group in rows.groupby("reward", sort=False)}
        for task, rows in parts.items()
    }


def without_levels(calibration: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Calibration by reward in single numbers: without the means per commanded value."""
    return {name: {k: v for k, v in found.items() if k != "levels"} for name, found in calibration.items()}


def _calibration(rows: pd.DataFrame, name: str, settings: MeasuringSettings) -> dict[str, Any]:
    rows = rows.dropna(subset=[name])
    commanded, achieved = rows[f"asked_{name}"], rows[name]
    result: dict[str, Any] = {"spearman": float(commanded.corr(achieved, method="spearman"))}
    if name == "length":
        error = (commanded - achieved).abs()
        result |= {
            "mae": float(error.mean()),
            "within_1": float((error <= 1).mean()),
            "within_2": float((error <= 2).mean()),
            "within_5_percent": float((error <= allowed_error(commanded)).mean()),
        }
    # prompts of one set are not independent of each other: sets are resampled, not prompts
    sets = rows.groupby([commanded, "task", "set"])[name].mean()
    result["levels"] = [
        {"asked": float(level), **interval(values, settings)} for level, values in sets.groupby(level=0)
    ]
    return result


def allowed_error(asked: pd.Series) -> pd.Series:
    """Words by which a prompt may miss the length that was asked for: 1 up to 40 words, 5% beyond."""
    return (0.05 * asked).where(asked > 40, 1)


def sample_systems(
    sampler: Sampler,
    annotated: pd.DataFrame,
    intents: dict[str, list[str]],
    plain: Student | None,
    others: dict[str, pd.DataFrame],
) -> pd.DataFrame:
    """One set of prompts per system and test intent, no set of an intent larger than the teacher's.

    Others are systems whose prompts (task, intent, prompt) are there already.
    """
    keys = [(task, intent) for task, pool in intents.items() for intent in pool]
    teacher = annotated[annotated.split == "test"].set_index(["task", "intent"]).loc[keys].reset_index()
    sizes = teacher.groupby(["task", "intent"], sort=False).size()
    n, student = int(sizes.max()), sampler.student
    tables = {
        "teacher": annotate(teacher[["task", "intent", "prompt"]], sampler.rewards, sampler.embed),
        "student_best": sampler.sample([(i, student.best_command(t)) for t, i in keys], n),
        "student_open": sampler.sample([(i, Command(t)) for t, i in keys], n),
    }
    if plain:
        tables["sft_plain"] = sampler.of(plain).sample([(i, Command(t)) for t, i in keys], n)
    copies = nearest_copies(annotated[annotated.split == "train"], keys, sampler.embed)
    tables["nearest_copy"] = annotate(copies, sampler.rewards, sampler.embed)
    tables |= {name: annotate(table, sampler.rewards, sampler.embed) for name, table in others.items()}
    cut = [_cut(table, sizes).assign(system=name) for name, table in tables.items()]
    return pd.concat(cut, ignore_index=True)


def _cut(table: pd.DataFrame, sizes: pd.Series) -> pd.DataFrame:
    """The first prompts of each set, as many as `sizes` gives for the intent."""
    wanted = sizes.reindex(pd.MultiIndex.from_frame(table[["task", "intent"]])).to_numpy()
    return table[table.groupby(["task", "intent"], sort=False).cumcount() < wanted]


def nearest_copies(train: pd.DataFrame, keys: list[tuple[str, str]], embed: Embed) -> pd.DataFrame:
    """For each (task, intent): the prompts of the nearest train intent of that task, as they are."""
    rows = []
    for task in dict.fromkeys(task for task, _ in keys):
        pool = train[train.task == task]
        known, wanted = list(pool.intent.unique()), [intent for t, intent in keys if t == task]
        nearest = (embed(wanted) @ embed(known).T).argmax(1)
        prompts = pool.groupby("intent").prompt.apply(list)
        rows += [(task, intent, p) for intent, k in zip(wanted, nearest, strict=True) for p in prompts[known[k]]]
    return pd.DataFrame(rows, columns=["task", "intent", "prompt"])


def set_metrics(samples: pd.DataFrame, embed: Embed) -> pd.DataFrame:
    """Per system, task and intent: mean relevance, diversity, words and overlap; self-BLEU, distinct-2, Vendi.

    Of columns non_words, broken and fluency too, where the samples have them.
    """
    vectors, rows = embed(samples.prompt), []
    per_prompt = [name for name in PROMPT_METRICS if name in samples]
    for (system, task, intent), index in samples.groupby(["system", "task", "intent"], sort=False).indices.items():
        prompts = samples.prompt.iloc[index].tolist()
        rows.append(
            {"system": system, "task": task, "intent": intent}
            | samples.iloc[index][per_prompt].mean().to_dict()
            | {
                "words": sum(len(prompt.split()) for prompt in prompts) / len(prompts),
                "overlap": overlap(intent, prompts),
                "self_bleu": self_bleu(prompts),
                "distinct_2": distinct_2(prompts),
                "vendi": vendi(vectors[index]),
            }
        )
    return pd.DataFrame(rows)


def overlap(intent: str, prompts: list[str]) -> float:
    """Mean share of an intent's content words that its prompts keep (stem match), 0..1.

    A measure of relevance that was not trained on: a student that games the embedding would show here.
    """
    wanted = {stem for word in words(intent) if len(word) > 3 for stem in stems(word)} or stems(intent)
    return sum(len(wanted & stems(prompt)) / len(wanted) for prompt in prompts) / len(prompts)


def self_bleu(prompts: list[str]) -> float:
    """Mean BLEU of each prompt against the others of its set, 0..100 (Zhu et al., arXiv 1802.01886)."""
    from sacrebleu import sentence_bleu

    if len(prompts) < 2:
        return float("nan")
    scores = [sentence_bleu(p, prompts[:i] + prompts[i + 1 :]).score for i, p in enumerate(prompts)]
    return sum(scores) / len(scores)


def distinct_2(prompts: list[str]) -> float:
    """Distinct word bigrams over all bigrams of the set, 0..1 (Li et al., arXiv 1510.03055)."""
    bigrams = [pair for prompt in prompts for pair in zip(words(prompt), words(prompt)[1:], strict=False)]
    return len(set(bigrams)) / len(bigrams) if bigrams else float("nan")


def vendi(vectors: np.ndarray) -> float:
    """Vendi score of unit vectors, 1..n: the effective number of prompts (Friedman and Dieng, arXiv 2210.02410)."""
    weights = np.linalg.eigvalsh(vectors @ vectors.T / len(vectors))
    weights = weights[weights > 1e-12]
    return float(np.exp(-(weights * np.log(weights)).sum()))


def system_metrics(sets: pd.DataFrame, settings: MeasuringSettings) -> dict[str, dict[str, dict[str, float]]]:
    """Means over test intents with 95% intervals: {system: {metric: {mean, low, high}}}."""
    return {
        system: {
            metric: interval(rows[metric].dropna(), settings)
            for metric in SET_METRICS
            if metric in rows and rows[metric].notna().any()
        }
        for system, rows in sets.groupby("system", sort=False)
    }


def relative_to_teacher(sets: pd.DataFrame, settings: MeasuringSettings) -> dict[str, dict[str, dict[str, float]]]:
    """Ratio of means to the teacher's, intents resampled in pairs: {system: {metric: {mean, low, high}}}."""
    metrics = ("relevance", "diversity")
    tables = {metric: sets.pivot(index=["task", "intent"], columns="system", values=metric) for metric in metrics}
    return {
        system: {
            metric: ratio_interval(table[system].to_numpy(), table["teacher"].to_numpy(), settings)
            for metric, table in tables.items()
        }
        for system in sets.system.unique()
    }


def unseen_nouns(annotated: pd.DataFrame, task: str, from_ontology: bool) -> dict[str, str]:
    """Test intents of a task whose main noun never occurred in a train text: {intent: noun}.

    With intents of the ontology a main noun is the head of a subject; elsewhere, any content word counts.
    """
    train = annotated[annotated.split == "train"]
    seen = set().union(*map(stems, train.intent.unique()), *map(stems, train.prompt))
    heads = {form for noun in noun_heads() for form in (noun, plural(noun))}
    rows = annotated[(annotated.split == "test") & (annotated.task == task)]
    found = {}
    for intent in rows.intent.unique():
        for word in words(clean_intent(intent)):
            if len(word) > 3 and word.isalpha() and not stems(word) & seen and (not from_ontology or word in heads):
                found[intent] = word  # the last of several
    return found


def open_vocabulary(
    sampler: Sampler, annotated: pd.DataFrame, from_ontology: bool, settings: MeasuringSettings
) -> tuple[dict[str, Any], pd.DataFrame]:
    """How often the student writes about a noun it has never seen (stem match), text_to_image at high relevance.

    Returns the metrics and the samples; no metric when there is no such intent.
    """
    task = "text_to_image" if "text_to_image" in annotated.task.unique() else annotated.task.iloc[0]
    nouns = unseen_nouns(annotated, task, from_ontology)
    if not nouns:
        return {"noun_hit_rate": None, "intents": 0}, annotated.iloc[:0]
    command = Command(task, relevance=1.0) if "relevance" in sampler.student.codec.rewards else Command(task)
    samples = sampler.sample([(intent, command) for intent in nouns], n=4)
    hits = [bool(stems(nouns[i]) & stems(p)) for i, p in zip(samples.intent, samples.prompt, strict=True)]
    samples = samples.assign(noun=samples.intent.map(nouns), hit=hits)
    return {"noun_hit_rate": interval(hits, settings), "intents": len(nouns), "task": task}, samples
