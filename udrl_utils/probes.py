"""Probes beyond calibration: likelihood without sampling, several commands at once, the edge of the data.

A student and annotated pairs go in; tables and metrics come out. Intents from outside are measured here, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from udrl_utils.baselines import journal_of, written_by
from udrl_utils.commands import Command
from udrl_utils.evaluation import calibration_metrics, interval, ratio_interval, sample_calibration, without_levels
from udrl_utils.pairs import extra_teacher
from udrl_utils.rewards import annotate
from udrl_utils.runs import RunFolder
from udrl_utils.samples import Sampler
from udrl_utils.settings import AnalysisSettings, DistillationSettings, MeasuringSettings, TrainingSettings
from udrl_utils.student import Student
from udrl_utils.tables import read_table
from udrl_utils.teachers import Teacher
from udrl_utils.teachers.replies import Journal, Request
from udrl_utils.text import clean_intent, lower_intent
from udrl_utils.training import is_unseen

if TYPE_CHECKING:
    from udrl_utils.encoder import Embed

PAIRS = 25  # test pairs per task whose likelihood is looked at
OUTSIDE = 200  # intents from outside that are asked for
OUTSIDE_PROMPTS = 4  # for each of them


def likelihood_check(student: Student, annotated: pd.DataFrame, seed: int) -> dict[str, dict[str, float]]:
    """How often the level that a test prompt achieved is the likeliest of all levels, without any sampling.

    Sources of a text are ranked by its likelihood under each (CTRL, arXiv 1909.05858). Returns per reward: top_1,
    within_1 (level bins), and what chance would give.
    """
    codec, found = student.codec, {}
    test = codec.complete(annotated[annotated.split == "test"])
    rows = test.groupby("task").sample(PAIRS, replace=True, random_state=seed).drop_duplicates("pair_id")
    prompts, bins = [codec.count_down(prompt, codec.horizon) for prompt in rows.prompt], codec.bins_of(rows)
    for name in codec.levels:
        prefixes = [
            codec.prefix(codec.encode(Command(row.task, **{name: codec.level_of(k)})), clean_intent(row.intent))
            for row in rows.itertuples()
            for k in range(codec.bins)
        ]
        scores = student.log_likelihood(prefixes, np.repeat(prompts, codec.bins).tolist())
        likeliest = np.reshape(scores, (-1, codec.bins)).argmax(1)
        true = bins[name].to_numpy(int)
        apart = np.abs(likeliest - true)
        found[name] = {
            "top_1": float((apart == 0).mean()),
            "within_1": float((apart <= 1).mean()),
            "chance_top_1": 1 / codec.bins,
            "chance_within_1": float((np.abs(true[:, None] - np.arange(codec.bins)) <= 1).mean()),
        }
    return found


def joint_calibration(
    sampler: Sampler, annotated: pd.DataFrame, intents: dict[str, list[str]], settings: AnalysisSettings
) -> dict[str, float]:
    """Spearman of commanded and achieved, per reward, when all are commanded at once, as test pairs achieved them.

    Diversity is achieved among the prompts of one command, which are to be relevant as well and cannot all be far from
    each other; what the pair achieved, it achieved among the teacher's prompts. `diversity_among_teacher` measures the
    student's there too: 1 - mean cosine to those of the teacher's prompts for the intent that are not the pair's own.
    """
    codec = sampler.student.codec
    keys = {(task, intent) for task, pool in intents.items() for intent in pool}
    test = codec.complete(annotated[annotated.split == "test"])
    test = test[[key in keys for key in zip(test.task, test.intent, strict=True)]].groupby(["task", "intent"]).head(1)
    levels = codec.bins_of(test).map(codec.level_of).to_dict("records")
    lengths = test.length.astype(int) if codec.longest else [None] * len(test)
    requests = [
        (intent, Command(task, length=length, **asked))
        for intent, task, length, asked in zip(test.intent, test.task, lengths, levels, strict=True)
    ]
    samples = sampler.sample(requests, settings.samples_per_intent)
    found = {n: float(samples[f"asked_{n}"].corr(samples[n], method="spearman")) for n in codec.rewards}
    if codec.longest:
        found["length_within_1"] = float(((samples.asked_length - samples.length).abs() <= 1).mean())
    if "diversity" in codec.levels:
        apart = among_teacher(samples, test, annotated, sampler.embed)
        found["diversity_among_teacher"] = float(samples.asked_diversity.corr(apart, method="spearman"))
    return found


def among_teacher(samples: pd.DataFrame, pairs: pd.DataFrame, annotated: pd.DataFrame, embed: Embed) -> pd.Series:
    """1 - mean cosine of each sample to the teacher's prompts for its intent, without that of its pair.

    Column `set` says which of the pairs a sample's command came from.
    """
    sets = annotated.set_index("pair_id").groupby(["task", "intent"]).prompt
    result = pd.Series(np.nan, samples.index)
    for place, rows in samples.groupby("set"):
        pair = pairs.iloc[place]
        others = sets.get_group((pair.task, pair.intent)).drop(pair.pair_id)
        result[rows.index] = 1 - (embed(rows.prompt) @ embed(others).T).mean(1)
    return result


def edge_of_the_data(
    sampler: Sampler, annotated: pd.DataFrame, calibration: pd.DataFrame, training: TrainingSettings
) -> pd.DataFrame:
    """What happens where the train split ends: one row per probe, with what was asked, what came, and the base rate.

    Lengths that one task never saw, lengths of the rarest hundredth, and levels at the very top.
    """
    train, codec, rows = annotated[annotated.split == "train"], sampler.student.codec, []
    pool = {task: list(group.intent.unique()) for task, group in calibration.groupby("task")}
    if codec.longest:
        lengths = calibration[calibration.reward == "length"]
        unseen = is_unseen(lengths.task, lengths.asked_length, training)
        kept_out = sorted({n for task in pool for n in training.unseen_lengths.get(task, ())})
        least, most = lengths.asked_length.min(), lengths.asked_length.max()
        rare = int(train.length.quantile(0.99)) + 1
        rarest = range(rare, codec.longest + 1)
        requests = [(pool[t][k % len(pool[t])], Command(t, length=k)) for t in pool for k in rarest]
        long = sampler.sample(requests, 2) if requests else lengths.head(0)
        for what, asked, part in (
            ("lengths never seen with this task", str(kept_out), lengths[unseen]),
            ("all other lengths", f"{least:.0f} to {most:.0f}", lengths[~unseen]),
            ("the longest hundredth", f"{rare} to {codec.longest}", long),
        ):
            if len(part):
                near = ((part.asked_length - part.length).abs() <= 1).mean()
                rows.append((f"{what}, within 1 word", asked, near, None))
    for name in codec.levels:
        high = train.groupby("task")[name].quantile(0.99)
        tasks = [task for task in pool if name in codec.rewards_of(task)]
        top = sampler.sample([(i, Command(t, **{name: 1.0})) for t in tasks for i in pool[t][:12]], 4)
        above = (top[name] > top.task.map(high)).mean()
        rows.append((f"{name} above the 99th percentile", "level 1", above, 0.01))
    return pd.DataFrame(rows, columns=["probe", "asked", "achieved", "train"])


def read_outside(settings: AnalysisSettings) -> list[str]:
    """Up to OUTSIDE intents of the file or Hub data set named in the settings, drawn at random; none without a name.

    Raises: SettingsError when they cannot be read.
    """
    if not settings.outside_intents:
        return []
    table = read_table(settings.outside_intents, [settings.outside_column])
    typed = map(clean_intent, reversed(table[settings.outside_column].tolist()))
    pool = sorted({lower_intent(intent): intent for intent in typed if intent}.values())  # the first of equal ones
    return [pool[place] for place in np.random.default_rng(settings.seed).permutation(len(pool))[:OUTSIDE]]


def outside_intents(
    sampler: Sampler, intents: list[str], models: dict[str, Teacher], settings: AnalysisSettings, run: RunFolder
) -> dict[str, Any]:
    """Relevance of the student on intents that nothing was trained on, in turn over the tasks, beside a language model.

    The model is the run's teacher, or the first baseline where the teacher has written all that it will. Returns its
    name as `reference`, both relevances, and their ratio; only the student's relevance where nobody can be asked.
    """
    tasks, made = list(sampler.student.codec.edges), run.settings(DistillationSettings)
    keys = [(tasks[k % len(tasks)], intent) for k, intent in enumerate(intents)]
    best = [(intent, sampler.student.best_command(task)) for task, intent in keys]

    def by_intent(table: pd.DataFrame) -> np.ndarray:
        return table.groupby(["task", "intent"], sort=False).relevance.mean().reindex(keys).to_numpy()

    ours = by_intent(sampler.sample(best, OUTSIDE_PROMPTS))
    asks = {"teacher": extra_teacher(run)} if made.teacher != "recorded" and not made.pairs else models
    if not asks:
        return {"intents": len(keys), "relevance": {"student_best": interval(ours, settings)}}
    name, reference = next(iter(asks.items()))
    journal = Journal(journal_of(run, f"outside {name}"))
    written = written_by(reference, [Request(task, intent, OUTSIDE_PROMPTS) for task, intent in keys], journal)
    theirs = by_intent(annotate(written, sampler.rewards, sampler.embed))
    answered = np.isfinite(theirs)  # an intent that the model did not answer says nothing of either
    ours, theirs = ours[answered], theirs[answered]
    return {
        "intents": len(ours),
        "reference": name,
        "relevance": {name: interval(theirs, settings), "student_best": interval(ours, settings)},
        "relative_to_reference": ratio_interval(ours, theirs, settings),
    }


def quality(
    samplers: dict[str, Sampler], intents: dict[str, list[str]], settings: MeasuringSettings
) -> dict[str, dict[str, Any]]:
    """What engines keep of a student: each one's calibration over all tasks, and its sets under the best commands.

    A set holds 4 x samples_per_intent prompts; `relative` is the ratio to the first engine's sets of the same intents,
    `relative_alike` that to the first one's that draws tokens alike, by min-p or without: what precision alone changes.
    """
    found: dict[str, dict[str, Any]] = {}
    firsts: dict[bool, pd.DataFrame] = {}
    for name, sampler in samplers.items():
        obeyed = calibration_metrics(sample_calibration(sampler, intents, settings), settings)["all"]
        best = [(i, sampler.student.best_command(task)) for task, pool in intents.items() for i in pool]
        sets = sampler.sample(best, 4 * settings.samples_per_intent).groupby("set")[["relevance", "diversity"]].mean()
        alike = firsts.setdefault("min_p" in sampler.student.knows, sets)
        first = next(iter(firsts.values()))
        found[name] = {
            "calibration": without_levels(obeyed),
            "sets": {reward: interval(sets[reward], settings) for reward in sets},
            "relative": _ratios(sets, first, settings),
            "relative_alike": _ratios(sets, alike, settings),
        }
    return found


def _ratios(ours: pd.DataFrame, theirs: pd.DataFrame, settings: MeasuringSettings) -> dict[str, dict[str, float]]:
    """Ratio of means of each reward, sets resampled in pairs."""
    return {reward: ratio_interval(ours[reward].to_numpy(), theirs[reward].to_numpy(), settings) for reward in ours}
