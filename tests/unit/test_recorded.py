"""Recorded prompts: packed from a run that was cut off, read back by runs, refused where they do not fit."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from faults.servers import ScriptedServer

from udrl_utils.errors import RunError, SettingsError
from udrl_utils.pairs import distil, plan, read_pairs
from udrl_utils.recording import record
from udrl_utils.runs import RunFolder
from udrl_utils.settings import DistillationSettings, resolve
from udrl_utils.tasks import TASKS
from udrl_utils.teachers import recorded
from udrl_utils.teachers.recorded import RECORDED


def answer(body: dict, number: int) -> str:
    return f"a drawing of {body['messages'][-1]['content']} with seed {body['seed']}"


def served(smoke: dict, url: str, **changes) -> tuple[DistillationSettings, RunFolder]:
    served_by = {"teacher": "openai", "teacher_model": "m", "teacher_base_urls": [url], "n_intents": 12}
    settings = resolve(DistillationSettings, smoke | served_by | changes)
    return settings, RunFolder(settings.run).start("01_pairs", settings)


@pytest.fixture
def packed(smoke: dict, outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of recorded prompts, of a run whose second shard was never begun."""
    with ScriptedServer(answer=answer) as server, pytest.raises(RunError, match="budget"):
        distil(*served(smoke, server.url, run="cut", shard_size=8, teacher_budget=38))
    folder = tmp_path / "recorded"
    made = record(RunFolder("cut"), folder)
    assert made["prompts"] == 36 and made["model"] == "m" and made["parts"][0]["seed"] == 0
    monkeypatch.setattr(recorded, "RECORDED", folder)
    return folder


def test_a_run_reads_back_what_was_recorded(smoke: dict, packed: Path) -> None:
    settings = resolve(DistillationSettings, smoke | {"n_intents": 0, "run": "reader"})
    run = RunFolder("reader").start("01_pairs", settings)
    counts, _ = distil(settings, run)
    pairs = read_pairs(run)
    assert counts["asked"] == 36 and set(pairs.teacher) == {"m"} and pairs.intent.nunique() == 9
    assert [(r.task, r.intent) for r in plan(settings)] == list(recorded.recorded_sets())
    few = settings.model_copy(update={"n_intents": 2, "tasks": ["related_search"]})
    assert [request.task for request in plan(few)] == ["related_search"] * 2


def test_fewer_recorded_than_asked_for_are_all_taken(smoke: dict, packed: Path, capsys) -> None:
    assert len(plan(resolve(DistillationSettings, smoke | {"n_intents": 5000}))) == 9
    assert "n_intents=5000, and 9 were recorded for" in capsys.readouterr().out


def test_what_was_not_recorded_is_one_line(smoke: dict, packed: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("zorblax\nkoi\n")
    table = pd.read_parquet(packed / "prompts.parquet")
    table[table.task != "related_search"].to_parquet(packed / "prompts.parquet")
    for changes, why in (
        ({"tasks": ["related_search"]}, r"tasks=\['related_search'\]: nothing was recorded .*teacher=local"),
        (
            {"intents": str(tmp_path / "mine.txt"), "n_intents": 0},
            r"nothing was recorded for 'zorblax' .*teacher=local",
        ),
    ):
        with pytest.raises(SettingsError, match=why) as caught:
            plan(resolve(DistillationSettings, smoke | changes))
        assert "\n" not in str(caught.value)


def test_a_further_part_is_added_and_nothing_is_twice(smoke: dict, packed: Path) -> None:
    with ScriptedServer(answer=answer) as server:
        distil(*served(smoke, server.url, run="more", seed=1))
        distil(*served(smoke, server.url, run="hot", seed=2, teacher_temperature=1.5))
    before = pd.read_parquet(packed / "prompts.parquet")
    made = record(RunFolder("more"), packed, add=True)
    after = pd.read_parquet(packed / "prompts.parquet")
    assert [part["seed"] for part in made["parts"]] == [0, 1] and len(after) == made["prompts"] > len(before)
    assert after.head(len(before)).equals(before)
    again = record(RunFolder("more"), packed, add=True)
    assert len(pd.read_parquet(packed / "prompts.parquet")) == len(after) and again["parts"] == made["parts"]
    with pytest.raises(RunError, match=r"has temperature=0\.9, run='hot' has 1\.5"):
        record(RunFolder("hot"), packed, add=True)


def test_only_what_a_model_wrote_is_recorded(smoke: dict, packed: Path) -> None:
    with pytest.raises(RunError, match="has no pairs yet"):
        record(RunFolder("nobody"), packed)
    settings = resolve(DistillationSettings, smoke | {"n_intents": 0, "run": "reader"})
    distil(settings, RunFolder("reader").start("01_pairs", settings))
    with pytest.raises(RunError, match="recorded is what a local or served teacher writes"):
        record(RunFolder("reader"), packed)


def test_the_shipped_recording_is_what_its_card_says() -> None:
    table, sets = pd.read_parquet(RECORDED / "prompts.parquet"), recorded.recorded_sets()
    card = (RECORDED / "README.md").read_text()
    assert set(table.task) == set(TASKS) and f"{len(table)} prompts" in card and "sha256" in card
    assert sum(file.stat().st_size for file in RECORDED.iterdir()) < 12e6
    assert len(sets) == table.groupby(["task", "intent"]).ngroups  # a set is not torn apart
    assert recorded.recorded_name() in card
