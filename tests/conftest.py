"""Shared fixtures: the smoke preset as plain settings, and one smoke run that the slower tests read."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from udrl_utils import settings

PRESETS = settings.ROOT / "notebooks" / "presets"


@pytest.fixture
def smoke() -> dict:
    """The smoke preset."""
    return yaml.safe_load((PRESETS / "smoke.yaml").read_text())


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
