"""A real JupyterLab and a real Chromium; everything here is skipped, with a line that says so, where there is none."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from udrl_utils.settings import ROOT

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
TOKEN = "probe"
QUIET = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "docmanager-extension/plugin": {"autosave": False},
}


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.skip("no Chromium is installed, so no page was looked at: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def lab(chromium, smoke_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of notebook 05, opened at the smoke run, in a JupyterLab of its own."""
    home = tmp_path_factory.mktemp("lab")
    source = (ROOT / "notebooks" / "05_probe_commands.ipynb").read_text(encoding="utf-8")
    (home / "05_probe_commands.ipynb").write_text(source.replace('run = \\"laptop\\"', 'run = \\"smoke\\"'))
    for name, content in QUIET.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", "--expose-app-in-browser"]
    options = [f"--ServerApp.port={port}", f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={home}"]
    places = {"UDRL_OUTPUTS": str(smoke_run.parent), "JUPYTERLAB_SETTINGS_DIR": str(home / "settings")}
    places |= {"JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"), "HF_HUB_OFFLINE": "1"}
    with (home / "log").open("w") as log:
        server = subprocess.Popen([*command, *options], env={**os.environ, **places}, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    for _ in range(120):
        time.sleep(0.5)
        try:
            urllib.request.urlopen(f"{address}/api?token={TOKEN}", timeout=5).close()
            break
        except OSError:
            assert server.poll() is None, (home / "log").read_text()
    yield f"{address}/lab/tree/05_probe_commands.ipynb?token={TOKEN}&reset"
    server.terminate()
    server.wait()
