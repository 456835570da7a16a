"""Probing by hand, without a browser: what is asked, what the panel answers, and that the kernel goes on meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

from udrl_utils.commands import Command, CommandError
from udrl_utils.deploy.export import DeployedStudent
from udrl_utils.errors import RunError
from udrl_utils.panel import Panel, Prober, runs_with_student
from udrl_utils.rewards import annotate
from udrl_utils.runs import RunFolder
from udrl_utils.settings import ProbeSettings, resolve
from udrl_utils.student import Student


def in_a_loop(work: Coroutine) -> None:
    """Run to the end in an event loop of its own; this thread may be within one, of a browser."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


@pytest.fixture(scope="module")
def prober(smoke_run: Path) -> Prober:
    run = RunFolder(smoke_run)
    return Prober(run, run.settings(ProbeSettings))


@pytest.fixture
def panel(prober: Prober, smoke_run: Path, monkeypatch: pytest.MonkeyPatch) -> Panel:
    monkeypatch.setenv("UDRL_OUTPUTS", str(smoke_run.parent))
    return Panel(prober)


def work(panel: Panel, *buttons: str) -> None:
    """Press buttons one after another, each when the one before is done."""

    async def press() -> None:
        for button in buttons:
            panel.buttons[button].click()
            await panel._work

    in_a_loop(press())


def test_a_probe_is_what_the_student_writes_scored(prober: Prober, smoke_run: Path) -> None:
    command = Command("related_search", length=9, relevance=0.8)
    samples, note = prober.ask("  KOI pond! ", command, 3, seed=5, temperature=0.7)
    asked = prober.codec.feasible(command)[0]
    settings = prober.settings
    sampling = settings.sampling() | {"seed": 5, "temperature": 0.7}
    written = Student.load(smoke_run / "03_student").generate(["koi pond"], asked, n=3, **sampling)
    assert samples.prompt.tolist() == written[0], "the student itself, although notebook 07 has exported it"
    again = annotate(samples[["task", "intent", "prompt"]], prober.codec.rewards, prober.sampler.embed)
    pd.testing.assert_frame_equal(samples[prober.codec.rewards], again[prober.codec.rewards])
    assert bool(note) == (asked != command)


def test_an_exported_engine_is_asked_only_on_request_and_only_for_what_it_can_do(
    smoke_run: Path, capsys: pytest.CaptureFixture
) -> None:
    run = RunFolder(smoke_run)
    settings = run.settings(ProbeSettings).model_copy(update={"engine": "int8"})
    with pytest.raises(CommandError, match=r"min_p=0.05.*: not an option of CTranslate2 int8"):
        Prober(run, settings)
    prober = Prober(run, settings.model_copy(update={"min_p": 0.0, "guidance": 1.0}))
    assert f"{run.name}, computed with CTranslate2 int8\n" in capsys.readouterr().out
    command = prober.codec.feasible(Command("related_search", length=9))[0]
    samples, _ = prober.ask("koi pond", command, 3, seed=5)
    sampling = {"seed": 5, "candidates": settings.candidates}
    engine = DeployedStudent.load(smoke_run / "07_deployment" / "int8")
    written = engine.generate(["koi pond"], command, n=3, **sampling)
    assert samples.prompt.tolist() == written[0]


def test_notebook_05_may_change_the_sampling_of_a_trained_student(smoke_run: Path, smoke: dict) -> None:
    settings = resolve(ProbeSettings, smoke | {"run": smoke_run.name, "temperature": 0.5, "guidance": 1.0})
    RunFolder(smoke_run).start("05_probes", settings).release()


def test_an_empty_intent_and_an_unknown_reward_are_one_line(prober: Prober) -> None:
    with pytest.raises(CommandError, match="the intent is empty"):
        prober.ask(" \x00 .", Command("text_to_image"), 1)
    with pytest.raises(CommandError, match="'joy' is unknown"):
        prober.ask("koi pond", Command("text_to_image", joy=0.5), 1)


def test_runs_are_listed_when_their_student_is_trained(smoke_run: Path, outputs: Path) -> None:
    assert runs_with_student() == []
    for name, stages in {"half": ["01_pairs"], "whole": ["01_pairs", "03_student"]}.items():
        (outputs / name).mkdir(parents=True)
        (outputs / name / "run.json").write_text(json.dumps({"stages": {stage: {} for stage in stages}}))
    assert runs_with_student() == ["whole"]
    with pytest.raises(RunError, match="run='half' has no student yet"):
        Prober(RunFolder("half"), RunFolder(smoke_run).settings(ProbeSettings))


def test_notebook_05_wrote_its_sweeps(smoke_run: Path, prober: Prober) -> None:
    sweeps = pd.read_parquet(smoke_run / "05_probes" / "sweeps.parquet")
    asked = sweeps[sweeps.reward == "relevance"].groupby("task").asked_relevance.unique()
    assert all(values.tolist() == prober.sweep_values("relevance") for values in asked)
    assert (sweeps.length == sweeps.prompt.str.split().str.len()).all()
    assert (smoke_run / "05_probes" / "figures" / "sweeps.png").exists()


def test_the_panel_answers_every_button(panel: Panel) -> None:
    panel.swept.value = "length"
    panel.commands[0].open["relevance"].value = True  # with it, the longest lengths are not feasible
    work(panel, "Generate", "Compare", "Sweep", "Export CSV")
    assert panel.shown["Generate"].value.count("<article") == panel.prompts.value
    assert panel.shown["Compare"].value.count("<article") == 2 * panel.prompts.value
    assert "data:image/png;base64," in panel.shown["Sweep"].value
    history = pd.read_csv(panel.prober.run / "05_probes" / "history.csv")
    assert history.probe.nunique() == 4
    assert sorted(history[history.probe == 4].asked_length.unique()) == panel.prober.sweep_values("length")
    assert history.kind.unique().tolist() == ["command", "command A", "command B", "sweep of length"]
    assert "history.csv" in panel.status.value and "data:text/csv" in panel.status.value


def test_two_looks_at_a_command_show_other_prompts_and_compared_ones_share_a_seed(panel: Panel) -> None:
    work(panel, "Generate", "Generate", "Compare")
    seeds = [samples.seed.iloc[0] for samples in panel.history]
    assert seeds[0] != seeds[1] and seeds[2] == seeds[3]


def test_open_rewards_are_not_commanded(panel: Panel) -> None:
    box = panel.commands[0]
    assert set(box.command("text_to_image").asked) == {"length", "relevance"}
    box.open["length"].value, box.open["diversity"].value = True, False
    assert set(box.command("text_to_image").asked) == {"relevance", "diversity"}
    assert box.sliders["length"].disabled and not box.sliders["diversity"].disabled


def test_a_bad_entry_is_a_sentence(panel: Panel) -> None:
    panel.intent.value = " . "
    work(panel, "Generate", "Export CSV")
    assert "nothing to export" in panel.status.value
    panel.intent.value = "<b>"
    panel.task.value = "related_search"
    work(panel, "Generate")
    assert "&lt;b&gt;" in panel.shown["Generate"].value


def test_what_nobody_expected_is_a_sentence_too(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_, **__) -> None:
        raise MemoryError("<no room>")

    monkeypatch.setattr(panel.prober, "ask", breaks)
    work(panel, "Generate")
    assert "MemoryError: &lt;no room&gt;" in panel.status.value
    assert not panel.buttons["Generate"].disabled


def test_the_kernel_goes_on_while_prompts_are_written(panel: Panel) -> None:
    beats = []

    async def both() -> None:
        panel.prompts.value = 32
        panel.buttons["Compare"].click()
        while not panel._work.done():
            beats.append(asyncio.get_running_loop().time())
            await asyncio.sleep(0.01)

    in_a_loop(both())
    assert len(panel.history) == 2
    assert len(beats) > 20
    assert max(b - a for a, b in itertools.pairwise(beats)) < 1, "drawing cards is all that it waits for"


def test_stop_ends_a_sweep_after_its_step(panel: Panel) -> None:
    async def stopped() -> None:
        panel.buttons["Sweep"].click()
        while not panel.shown["Sweep"].value:
            await asyncio.sleep(0.01)
        panel.stop.click()
        await asyncio.wait({panel._work})

    in_a_loop(stopped())
    assert "Stopped" in panel.status.value
    assert panel.history[0].set.size < len(panel.prober.sweep_values("length")) * panel.prompts.value
    assert not panel.buttons["Sweep"].disabled and panel.stop.disabled


def test_another_run_can_be_chosen(panel: Panel, smoke_run: Path) -> None:
    shutil.copytree(smoke_run, smoke_run.parent / "other", dirs_exist_ok=True)

    async def choose() -> None:
        panel.run.value = "other"
        await panel._work

    panel.run.options = [*panel.run.options, "other"]
    in_a_loop(choose())
    assert panel.prober.run.name == "other"
    assert "other is ready" in panel.status.value
    shutil.rmtree(smoke_run.parent / "other")
