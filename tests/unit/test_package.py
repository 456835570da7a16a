"""The package as a whole: cheap imports, one way; nothing in the checkout that belongs to one machine."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from udrl_utils.machine import environment
from udrl_utils.settings import ROOT, parameters_page

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "udrl_utils").rglob("*.py")
)
HEAVY = ("torch", "transformers", "trl", "datasets")

# Written so that this file does not match itself.
REGISTRY = re.compile(
    r"pypi[.]org|python[h]osted|download[.]pytorch|repo[.]anaconda|[/]simple\b|--(extra-)?index[-]url"
)
OWN_PATH = re.compile(r"(?<![\w.:/<>-])/(home|root|Users|tmp|opt|mnt|srv|work)/")


@pytest.mark.parametrize("module", MODULES)
def test_an_import_loads_no_heavy_library(module):
    command = f"import sys, {module}; print(*({set(HEAVY)} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def checkout() -> list[Path]:
    """Text files that git tracks or would track."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    paths = [ROOT / name for name in listed]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:1024]]


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
    assert pip == ["-c requirements.lock", f"torch=={locked()['torch']}", "-e .[offline,deploy,search,dev]"]
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
