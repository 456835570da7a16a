"""Shared fixtures: the smoke preset as plain settings, and one smoke run that the slower tests read."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import yaml

from udrl_utils import settings

PRESETS = settings.ROOT / "notebooks" / "presets"


@pytest.hookimpl(tryfirst=True)  # before -m is looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that read the smoke run: it is made once and some change it, so one process runs them all."""
    for item in items:
        if "smoke_run" in item.fixturenames:
            item.add_marker(pytest.mark.reads_run)


@pytest.fixture
def smoke() -> dict:
    """The smoke preset, and the defaults of what it does not hold."""
    return settings.DEFAULTS | yaml.safe_load((PRESETS / "smoke.yaml").read_text())


TEMPLATES = (
    "studio photo of {}, soft light",
    "{} on a plain background",
    "a detailed drawing of {} in ink and watercolor",
    "wide view with {} at dusk, calm colors and a clear sky",
)


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like that of the recorded prompts: 120 intents per task, and templates that hold their words."""
    import pandas

    from udrl_utils.ontology import ontology_intents
    from udrl_utils.tasks import TASKS

    folder, rows = tmp_path_factory.mktemp("recorded"), []
    for task in TASKS:
        intents = dict.fromkeys(itertools.islice(ontology_intents(1, task), 120))
        rows += [(task, intent, text.format(intent)) for intent in intents for text in TEMPLATES]
    pandas.DataFrame(rows, columns=["task", "intent", "prompt"]).to_parquet(folder / "prompts.parquet")
    (folder / "recording.json").write_text(json.dumps({"model": "templates"}))
    return folder


@pytest.fixture(scope="session")
def small_base(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of a few thousand parameters that has read the recording once, made by `udrl base`."""
    from typer.testing import CliRunner

    from udrl_utils.base import train_base
    from udrl_utils.cli import app

    home = tmp_path_factory.mktemp("base")
    small = {"n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": 600}
    (home / "small.yaml").write_text(yaml.safe_dump(small))
    asked = ["base", "--passes", "1", "--preset", str(home / "small.yaml"), "--out", str(home / "base")]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(train_base, "__defaults__", (recording, None))
        done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0 and "validation loss" in done.output and " MB" in done.output, done.output
    return home / "base"


@pytest.fixture(scope="session")
def exported_ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ready student, exported to 8 bits."""
    from udrl_utils.deploy.export import export
    from udrl_utils.student import READY

    return export(READY, tmp_path_factory.mktemp("exported") / "int8", "int8", top_k=50, top_p=0.9)


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of runs of its own."""
    monkeypatch.setenv("UDRL_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path / "outputs"


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a smoke run made by `udrl run` from a foreign working directory."""
    import os
    import subprocess
    import sys

    home = tmp_path_factory.mktemp("elsewhere")
    environment = {**os.environ, "UDRL_OUTPUTS": str(home / "outputs"), "HF_HUB_OFFLINE": "1"}
    every = str(len(settings.NOTEBOOKS))
    command = [sys.executable, "-m", "udrl_utils.cli", "run", "--preset", "smoke", "--to", every]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return home / "outputs" / "smoke"
