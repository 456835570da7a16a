"""A JupyterLab of its own with notebook 05 opened at a run, and the Chromium to look at it with."""

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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from udrl_utils.settings import ROOT

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
TOKEN = "probe"
QUIET = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "docmanager-extension/plugin": {"autosave": False},
}


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium; None where none is installed."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        yield None
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=FLAGS)
        try:
            yield chromium
        finally:
            chromium.close()


@contextmanager
def notebook_05(run: Path, home: Path) -> Iterator[str]:
    """Address of notebook 05, opened at a run, in a JupyterLab whose files are all in `home`."""
    source = (ROOT / "notebooks" / "05_probe_commands.ipynb").read_text(encoding="utf-8")
    (home / "05_probe_commands.ipynb").write_text(source.replace('run = \\"laptop\\"', f'run = \\"{run.name}\\"'))
    for name, content in QUIET.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", "--expose-app-in-browser"]
    options = [f"--ServerApp.port={port}", f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={home}"]
    places = {"UDRL_OUTPUTS": str(run.parent), "JUPYTERLAB_SETTINGS_DIR": str(home / "settings")}
    places |= {"JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"), "HF_HUB_OFFLINE": "1"}
    with (home / "log").open("w") as log:
        server = subprocess.Popen([*command, *options], env={**os.environ, **places}, stdout=log, stderr=log)
    try:
        while not answers(port):
            assert server.poll() is None, (home / "log").read_text()
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/lab/tree/05_probe_commands.ipynb?token={TOKEN}&reset"
    finally:
        server.terminate()
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()


def answers(port: int) -> bool:
    """Whether the server is up."""
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={TOKEN}", timeout=5).close()
    except OSError:
        return False
    return True


def run_all(page: Any, address: str) -> Any:
    """Open the notebook, run all its cells, and return its panel."""
    page.goto(address)
    page.get_by_text("| Idle").wait_for(timeout=60_000)  # the kernel is there
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.get_by_role("button", name="Generate").wait_for(timeout=90_000)
    page.get_by_text("05_probes/sweeps.parquet").wait_for(timeout=90_000)
    return page.locator(".jp-OutputArea-output:has(button.mod-primary)").first
