"""The package as a whole: cheap imports, one way; nothing in the checkout that belongs to one machine."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from functools import partial
from pathlib import Path

import pytest
import yaml

from udrl_utils.machine import environment
from udrl_utils.presets import parameters_page
from udrl_utils.settings import ROOT

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "udrl_utils").rglob("*.py")
)
HEAVY = {"torch", "transformers", "trl", "datasets", "sentence_transformers"}

# Written so that this file does not match itself.
REGISTRY = re.compile(
    r"pypi[.]org|python[h]osted|download[.]pytorch|repo[.]anaconda|[/]simple\b|--(extra-)?index[-]url"
)
OWN_PATH = re.compile(r"(?<![\w.:/<>-])/(home|root|Users|tmp|opt|mnt|srv|work)/")


def test_no_import_loads_a_heavy_library():
    loads = f"import sys, importlib\nfor name in {MODULES!r}:\n  importlib.import_module(name)\n  "
    loads += f"heavy = {HEAVY!r} & sys.modules.keys()\n  assert not heavy, (name, heavy)"
    done = subprocess.run([sys.executable, "-c", loads], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_wheel_brings_its_notebooks_and_runs_them(tmp_path):
    source, python = tmp_path / "source", tmp_path / "venv" / "bin" / "python"
    for file in tracked():
        (source / file.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, source / file.relative_to(ROOT))
    run = partial(subprocess.run, cwd=tmp_path, check=True, capture_output=True, text=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)])
    run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")])
    run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", *map(str, tmp_path.glob("*.whl"))])
    home = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    (home / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # this environment has all that it needs
    places = {"PYTHONPATH", "UDRL_OUTPUTS"}
    alone = {name: value for name, value in os.environ.items() if name not in places} | {"HF_HUB_OFFLINE": "1"}
    udrl = python.parent / "udrl"
    run([udrl, "new", "mine"], env=alone)
    shown = run([udrl, "run", "--preset", "smoke", "--to", "1"], cwd=tmp_path / "mine", env=alone).stdout
    made = tmp_path / "mine" / "outputs" / "smoke"
    assert str(made) in shown and json.loads((made / "run.json").read_text())["stages"]["01_pairs"]
    where = run([python, "-c", "import udrl_utils; print(udrl_utils.__file__)"], env=alone).stdout
    assert where.startswith(str(tmp_path / "venv"))


def tracked() -> list[Path]:
    """Files that git tracks or would track."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [path for path in (ROOT / name for name in listed) if path.is_file()]


def checkout() -> list[Path]:
    """Text files of the checkout."""
    return [path for path in tracked() if b"\0" not in path.read_bytes()[:1024]]


def test_files_name_no_registry_and_no_path_of_one_machine():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in checkout()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if REGISTRY.search(line) or OWN_PATH.search(line)
    ]
    assert not found


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()[1:]
    return {normal(name): version for name, version in (line.split("==") for line in lines)}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_lock_pins_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = itertools.chain(project["dependencies"], *project["optional-dependencies"].values())
    assert {normal(re.match(r"[\w.-]+", name)[0]) for name in wanted} <= locked().keys()
    assert all(re.fullmatch(r"[\w.]+", version) for version in locked().values())


def test_conda_installs_what_the_lock_pins_and_says_why():
    text = (ROOT / "environment.yml").read_text()
    pip = yaml.safe_load(text)["dependencies"][-1]["pip"]
    assert pip == ["-c requirements.lock", f"torch=={locked()['torch']}", "-e .[offline,deploy,search,serve,scale,dev]"]
    entries = [line for line in text.splitlines() if line.lstrip().startswith("- ") and not line.endswith("pip:")]
    assert all(" # " in line for line in entries)


def test_the_page_of_parameters_is_up_to_date():
    assert (ROOT / "docs" / "parameters.md").read_text() == parameters_page(), "make docs writes it anew"


def test_links_of_readme_and_docs_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_machine_is_told_with_its_gpus(monkeypatch) -> None:
    import torch

    assert "cores" in environment()["machine"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda k: f"GPU {k}")
    assert environment()["machine"].endswith("cores, GPU 0, GPU 1")
