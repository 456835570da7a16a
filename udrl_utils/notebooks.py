"""Execution of the notebooks: a stage and its settings go in, an executed notebook in the run folder comes out.

Settings of all stages are checked together before the first of them runs. Nothing here knows what a notebook computes.
"""

from __future__ import annotations

import difflib
import re
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import typer
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

from udrl_utils.ablations import variants_of
from udrl_utils.baselines import FORM
from udrl_utils.errors import SettingsError
from udrl_utils.rewards import BUILT_IN
from udrl_utils.runs import RunFolder, workbook
from udrl_utils.settings import NOTEBOOKS, ROOT, AnalysisSettings, StageSettings, wrong
from udrl_utils.splits import HELD_OUT
from udrl_utils.tables import FORMATS, read_table
from udrl_utils.training import JUDGED

INSTALLED = Path(__file__).parent / "data" / "notebooks"  # a wheel holds a copy of the notebooks
ORIGINALS = INSTALLED if INSTALLED.is_dir() else ROOT / "notebooks"


def notebooks_folder() -> Path:
    """Folder of the notebooks and presets that run: the workbook's own, or those of the installed package."""
    own = workbook() / "notebooks"
    return own if own.is_dir() else ORIGINALS


def new_workbook(folder: Path) -> None:
    """Copy the notebooks and presets to `folder`/notebooks. Raises: SettingsError when `folder` is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingsError(f"parameter folder={str(folder)!r} exists and is not an empty folder")
    try:
        shutil.copytree(ORIGINALS, folder / "notebooks", ignore=shutil.ignore_patterns(".*", "__*"))
    except OSError as error:
        raise SettingsError(f"parameter folder={str(folder)!r} cannot be written ({error.strerror})") from None


class OwnKernel(AsyncKernelManager):
    """A kernel of the Python that runs this process, whatever kernelspecs are installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())


def check_stages(settings: dict[str, StageSettings], stages: Sequence[str]) -> None:
    """Check what the settings of the stages that are going to run say together, and the files that they name.

    Raises: SettingsError, one line that names the parameter, its value and what is allowed.
    """

    def refuse(stage: str, name: str, value: Any, allowed: str) -> None:
        if stage in stages:
            raise wrong(type(settings[stage]), name, value, allowed)

    pairs, scored, training, analysis, search = (vars(settings[s]) for s in [*list(NOTEBOOKS)[:4], "06_search"])
    for stage in stages:
        settings[stage].check_tasks()
    notebook = (notebooks_folder() / f"{NOTEBOOKS['02_annotated']}.ipynb").read_text(encoding="utf-8")
    known = [*sorted(BUILT_IN), *re.findall(r"@reward\(\s*\\?[\"'](\w+)", notebook)]
    for name in scored["rewards"]:
        if name not in known:
            near = "".join(f"did you mean {close}? " for close in difflib.get_close_matches(name, known, 1))
            refuse("02_annotated", "rewards", name, f"is unknown; {near}allowed are {', '.join(known)}")
    if training["rounds"] and not JUDGED.issubset(scored["rewards"]):
        allowed = f"needs relevance and diversity in rewards={scored['rewards']}"
        refuse("03_student", "rounds", training["rounds"], allowed)
    if training["base"] == "recorded" and pairs["test_fraction"] > HELD_OUT:
        allowed = f"allows test_fraction up to {HELD_OUT}, since it has read other intents; use base=''"
        refuse("03_student", "base", training["base"], allowed)
    for text in analysis["baselines"]:
        if not FORM.fullmatch(text):
            refuse("04_analysis", "baselines", text, "should be local:<model> or openai:<model>@<http address>")
    if "04_analysis" in stages:
        variants_of(cast(AnalysisSettings, settings["04_analysis"]))
    for part in search["search_command"]:
        if part.split()[0] not in scored["rewards"]:
            refuse("06_search", "search_command", part, f"should name one of rewards={scored['rewards']}")
    read = (
        ("01_pairs", "intents", [pairs["intents_column"]]),
        ("01_pairs", "pairs", ["task", "intent", "prompt"]),
        ("04_analysis", "outside_intents", [analysis["outside_column"]]),
        ("06_search", "catalog", ["id", "title"]),
        ("06_search", "judgements", ["intent", "id", "grade"]),
    )
    for stage, name, columns in read:
        source = getattr(settings[stage], name)
        if stage in stages and is_file(source):
            read_table(source, columns)
    for stage, name in (("02_annotated", "encoder"), ("03_student", "base"), ("04_analysis", "fluency_model")):
        source = getattr(settings[stage], name)
        if source.startswith((".", "/", "~")) and not Path(source).exists():
            refuse(stage, name, source, "is no file or folder that is there")


def is_file(source: str) -> bool:
    """Whether a source is meant to be a file, and not a folder, a Hub data set or a word such as ontology."""
    path = Path(source)
    named = source.lower().removesuffix(".gz").endswith(FORMATS) or source.startswith((".", "/", "~"))
    return path.is_file() or (named and not path.is_dir())


def execute(stage: str, settings: StageSettings, run: RunFolder) -> None:
    """Execute a stage's notebook into `run`/notebooks, and print what its cells print.

    Raises: typer.Exit with code 1 when a cell fails, after one line with its error and the executed notebook's path.
    """
    import papermill  # slow to import
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError, strip_color

    name = NOTEBOOKS[stage]
    source, copy = notebooks_folder() / f"{name}.ipynb", run / "notebooks" / f"{name}.ipynb"
    copy.parent.mkdir(exist_ok=True)
    began = time.monotonic()
    typer.secho(f"{name} ...", bold=True)
    try:
        papermill.execute_notebook(
            source,
            copy,
            parameters=settings.model_dump(mode="json"),
            kernel_name="python3",
            language="python",
            progress_bar=False,
            stdout_file=sys.stdout,
            kernel_manager_class=OwnKernel,
            # hides the warning that messages to the kernel are not encrypted: they stay on this machine
            extra_arguments=["--IPKernelApp.log_level=40"],
        )
    except (PapermillExecutionError, DeadKernelError) as error:
        cause = f"{error.ename}: {error.evalue}" if isinstance(error, PapermillExecutionError) else str(error)
        line = " ".join(strip_color(cause).split())[:500]
        typer.echo(f"{name} failed after {minutes(time.monotonic() - began)}: {line}; see {copy}", err=True)
        raise typer.Exit(1) from None
    typer.secho(f"{name} done in {minutes(time.monotonic() - began)}", bold=True)


def minutes(seconds: float) -> str:
    """A duration in minutes, such as '1.5 minutes'."""
    return f"{seconds / 60:.1f} minutes"
