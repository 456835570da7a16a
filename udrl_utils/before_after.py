"""Before and after: what learning commands changes, seen by asking the base, the student and a third for the same.

In go a run's student and its test intents. Out come samples of the base that the student started from, of the student,
and of the one whose commands were shuffled where the ablations made it, with how well each obeys. This file does not
know how good the prompts are otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from udrl_utils.ablations import INTENTS, folder_of, variants_of
from udrl_utils.evaluation import sample_calibration
from udrl_utils.gpt2 import pretrained_student
from udrl_utils.machine import device_and_dtype, seed_everything
from udrl_utils.runs import RunFolder
from udrl_utils.samples import Sampler
from udrl_utils.settings import AnalysisSettings, IntervalSettings, TrainingSettings
from udrl_utils.student import Student

if TYPE_CHECKING:
    import pandas


def ask_before_and_after(
    sampler: Sampler,
    calibration: pandas.DataFrame,
    intents: dict[str, list[str]],
    run: RunFolder,
    settings: AnalysisSettings,
) -> pandas.DataFrame | None:
    """Samples under one command at a time, as `sample_calibration` makes them, with a column `model`.

    `model` is base, student (its calibration as it is) or shuffled, which is left out where there is none. Base and
    shuffled are asked on 8 test intents per task. None, and a line that says so, for a student without a base.
    """
    import pandas

    training = run.settings(TrainingSettings)
    if not training.base:
        print("no before and after: base='', so this student was trained from scratch", flush=True)
        return None
    seed_everything(settings.seed)  # the codec's tokens get random embeddings
    model, tokenizer = pretrained_student(training.base, sampler.student.codec, training.n_positions)
    others = {"base": Student(model.to(device_and_dtype()[0]), tokenizer, sampler.student.codec)}
    if "shuffled commands" in variants_of(settings):
        others["shuffled"] = Student.load(folder_of(run, "shuffled commands", 0) / "03_student")
    few = {task: pool[:INTENTS] for task, pool in intents.items()}
    tables = {"student": calibration}
    tables |= {name: sample_calibration(sampler.of(other), few, settings) for name, other in others.items()}
    found = {name: tables[name].assign(model=name) for name in ("base", "student", "shuffled") if name in tables}
    return pandas.concat(found, ignore_index=True)


def obedience(samples: pandas.DataFrame, settings: IntervalSettings) -> dict[str, dict[str, dict[str, Any]]]:
    """How well each model obeys: {reward: {model: {spearman, low, high}}}, of length `within_1` too.

    Spearman's correlation of commanded and achieved, with its 95% bootstrap interval; sets are resampled, since the
    prompts of one set depend on each other. Where all prompts achieve the same, no command is obeyed: 0.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for (name, model), rows in samples.groupby(["reward", "model"], sort=False):
        asked = f"asked_{name}"
        rows = rows.dropna(subset=[name])
        found.setdefault(name, {})[model] = spearman_interval(rows[["set", asked, name]].to_numpy(float), settings)
        if name == "length":
            found[name][model]["within_1"] = float(((rows[asked] - rows[name]).abs() <= 1).mean())
    return found


def spearman_interval(rows: Any, settings: IntervalSettings) -> dict[str, float]:
    """Spearman's correlation with its 95% interval, of an array with columns set, commanded and achieved."""
    import numpy as np
    import pandas

    def spearman(part: Any) -> float:
        ranks = pandas.DataFrame(part[:, 1:]).rank().to_numpy()
        return float(np.corrcoef(ranks.T)[0, 1]) if np.ptp(ranks, axis=0).all() else 0.0

    order = np.argsort(rows[:, 0], kind="stable")
    rows = rows[order]
    sets = np.split(rows, np.unique(rows[:, 0], return_index=True)[1][1:])
    draws = np.random.default_rng(settings.seed).integers(0, len(sets), (settings.bootstrap_samples, len(sets)))
    low, high = np.percentile([spearman(np.concatenate([sets[k] for k in draw])) for draw in draws], [2.5, 97.5])
    return {"spearman": spearman(rows), "low": float(low), "high": float(high)}
