"""Before and after: obedience of samples whose obedience is known, and the base that is asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from udrl_utils import ablations, figures
from udrl_utils.commands import CommandCodec
from udrl_utils.runs import RunFolder
from udrl_utils.samples import Sampler
from udrl_utils.settings import AnalysisSettings, IntervalSettings, TrainingSettings, resolve

INTERVALS = IntervalSettings(run="x", seed=0, bootstrap_samples=200)


def codec() -> CommandCodec:
    return CommandCodec(10, 40, {"related_search": {"relevance": np.linspace(0, 1, 11).tolist()}})


def samples(model: str, follows: bool) -> pd.DataFrame:
    """Three sets of two prompts per command; they achieve what was asked, or the same whatever was asked."""
    rows = []
    for name, values in {"length": range(4, 24), "relevance": np.linspace(0.05, 0.95, 10)}.items():
        for place, value in enumerate(values):
            for turn in range(3):
                achieved = value if follows else 9 + turn if name == "length" else 0.3 + turn / 10
                row = {"task": "related_search", "reward": name, "set": 3 * place + turn, "model": model}
                rows += 2 * [{**row, f"asked_{name}": value, name: achieved}]
    return pd.DataFrame(rows)


def test_obedience_of_known_samples() -> None:
    both = pd.concat([samples("base", follows=False), samples("student", follows=True)], ignore_index=True)
    found = ablations.obedience(both, INTERVALS)
    assert list(found) == ["length", "relevance"] and list(found["length"]) == ["base", "student"]
    assert found["length"]["student"] == pytest.approx({"spearman": 1, "low": 1, "high": 1, "within_1": 1})
    assert found["relevance"]["student"] == pytest.approx({"spearman": 1, "low": 1, "high": 1})
    base = found["length"]["base"]
    assert base["spearman"] == pytest.approx(0) and base["low"] < -0.1 and base["high"] > 0.1
    near = np.mean([abs(k - wrote) <= 1 for k in range(4, 24) for wrote in (9, 10, 11)])
    assert base["within_1"] == pytest.approx(near)


def test_who_always_writes_the_same_obeys_nothing() -> None:
    rows = samples("base", follows=True).assign(length=7.0)
    found = ablations.obedience(rows[rows.reward == "length"], INTERVALS)["length"]["base"]
    assert (found["spearman"], found["low"], found["high"]) == (0, 0, 0)


def test_the_interval_is_wider_where_prompts_of_a_set_depend_on_each_other() -> None:
    rng = np.random.default_rng(0)
    asked = np.repeat(rng.random(30), 8)
    achieved = asked + np.repeat(rng.normal(0, 0.5, 30), 8)
    together, apart = (
        ablations.spearman_interval(np.column_stack([asked, achieved, sets]), INTERVALS)
        for sets in (np.arange(240) // 8, np.arange(240))
    )
    assert together["spearman"] == apart["spearman"]
    assert together["high"] - together["low"] > 2 * (apart["high"] - apart["low"])


def analysis(smoke: dict, run: RunFolder, base: str) -> AnalysisSettings:
    run.finish("03_student", resolve(TrainingSettings, {**smoke, "base": base}))
    return resolve(AnalysisSettings, dict(smoke))


def test_the_base_is_asked_beside_the_student(
    smoke: dict, outputs: Path, small_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not how a base obeys, only that it is there, under the student's codec."""
    run, asked = RunFolder("before"), []

    def remembered(sampler: Sampler, intents: dict, settings: AnalysisSettings) -> pd.DataFrame:
        asked.append(sampler)
        assert all(len(pool) <= ablations.INTENTS for pool in intents.values())
        return samples("asked", follows=False).drop(columns="model")

    monkeypatch.setattr(ablations, "sample_calibration", remembered)
    settings = analysis(smoke, run, str(small_base))
    student = type("Known", (), {"codec": codec()})()
    sampler = Sampler(student, [], None, seed=0)
    intents = {"related_search": [f"intent {k}" for k in range(20)]}
    calibration = samples("student", follows=True).drop(columns="model")
    found = ablations.ask_before_and_after(sampler, calibration, intents, settings, run)
    assert found.model.unique().tolist() == ["base", "student"]
    [base] = asked
    assert base.sampling == sampler.sampling and base.student.codec == codec()
    assert "<|relevance:9|>" in base.student.tokenizer.get_vocab()


def test_from_scratch_there_is_no_before(smoke: dict, outputs: Path, capsys: pytest.CaptureFixture) -> None:
    run = RunFolder("scratch")
    settings = analysis(smoke, run, base="")
    sampler = Sampler(type("Known", (), {"codec": codec()})(), [], None)
    assert ablations.ask_before_and_after(sampler, pd.DataFrame(), {}, settings, run) is None
    told = capsys.readouterr().out
    assert "from scratch" in told and told.count("\n") == 1


def test_the_figure_shows_each_reward_with_its_agreement() -> None:
    models = {"base": False, "student": True, "shuffled": False}
    asked = pd.concat([samples(model, follows) for model, follows in models.items()], ignore_index=True)
    figure = figures.before_and_after(asked, ablations.obedience(asked, INTERVALS), codec())
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == [f"{name}: agreement 0.00 before, 1.00 after" for name in ("Length", "Relevance")]
    assert len(figure.legends[0].get_texts()) == 4
