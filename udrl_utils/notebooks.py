"""Execution of the notebooks: a stage and its settings go in, an executed notebook in the run folder comes out.

Nothing here knows what a notebook computes.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import typer
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

from udrl_utils.errors import SettingsError
from udrl_utils.runs import RunFolder, workbook
from udrl_utils.settings import NOTEBOOKS, ROOT, StageSettings

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
