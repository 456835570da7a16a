"""`udrl run` executes the notebooks on a preset; `udrl report` builds a run's page, `udrl base` the embedded base."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from udrl_utils.gpt2 import BASE
from udrl_utils.runs import RunFolder
from udrl_utils.settings import NOTEBOOKS, ROOT, SETTINGS, STAGES, SettingsError, StageSettings, UserError, resolve

if TYPE_CHECKING:
    import pandas

PRESETS = ROOT / "notebooks" / "presets"
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def run(
    preset: Annotated[str, typer.Option(help="smoke, laptop, paper, or the path of a YAML file")] = "laptop",
    name: Annotated[str | None, typer.Option("--run", help="name of the run, in place of the preset's")] = None,
    first: Annotated[int, typer.Option("--from", help="first notebook, by number")] = 1,
    last: Annotated[int | None, typer.Option("--to", help="last notebook; without it 4, or the first if later")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", help="key=value, in place of the preset's")] = None,
) -> None:
    """Run the notebooks on a preset; exit 0 only when every one of them ran."""
    with mistakes_in_one_line():
        stages = stages_between(first, max(first, 4) if last is None else last)
        settings = read_settings(preset, changes or [], name)
        folder = RunFolder(settings[stages[0]].run).start(stages[0], settings[stages[0]])
        folder.release()  # the kernels of the notebooks hold it
    began = time.monotonic()
    for stage in stages:
        execute(stage, settings[stage], folder)
    typer.echo(f"run {folder.name}: {minutes_since(began)}{peak_memory()}")
    if "04_analysis" in stages:
        show_results(folder)
        typer.echo(f"report: {folder / 'report.html'}")


@app.command()
def report(run: Annotated[str, typer.Argument(help="name of a run in outputs/")]) -> None:
    """Build report.html of a run from what its stages wrote."""
    from udrl_utils.report import build

    with mistakes_in_one_line():
        typer.echo(f"report: {build(RunFolder(run))}")


@app.command()
def base(
    out: Annotated[Path, typer.Option(help="folder to write, in place of the embedded base")] = BASE,
    rows: Annotated[int, typer.Option(help="exercises, each seen once", min=100)] = 225_000,
    preset: Annotated[str, typer.Option(help="preset with the shape and the seed")] = "laptop",
) -> None:
    """Train the small GPT-2 that presets with `base: embedded` start from; half an hour on two cores."""
    from udrl_utils.base import train_base

    with mistakes_in_one_line():
        settings = read_settings(preset, [])["03_student"]
    train_base(settings, rows, out)


@contextmanager
def mistakes_in_one_line() -> Iterator[None]:
    """Show a UserError as one line and exit with code 2."""
    try:
        yield
    except UserError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        raise typer.Exit(2) from None


def stages_between(first: int, last: int) -> tuple[str, ...]:
    """Stages of notebooks first to last, counted from 1. Raises: SettingsError."""
    for option, number in (("from", first), ("to", last)):
        if not 1 <= number <= len(STAGES):
            raise SettingsError(f"parameter {option}={number} is not the number of a notebook, 1 to {len(STAGES)}")
    if last < first:
        raise SettingsError(f"parameter to={last} comes before from={first}")
    return STAGES[first - 1 : last]


def read_settings(preset: str, changes: list[str], name: str | None = None) -> dict[str, StageSettings]:
    """Settings of every stage: a preset, `key=value` changes to it, a run name. Raises: SettingsError."""
    values = read_preset(preset)
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise SettingsError(f"parameter set={change!r} is not of the form key=value")
        values[key] = read_yaml(text, f"parameter {key}={text!r}") if text else ""
    if name is not None:
        values["run"] = name
    for key, value in values.items():
        if not all(isinstance(part, str | int | float) for part in (value if isinstance(value, list) else [value])):
            raise SettingsError(f"parameter {key}={value!r} is neither text, a number, true, false nor a list of those")
    return {stage: resolve(cls, values) for stage, cls in SETTINGS.items()}


def read_preset(preset: str) -> dict[str, Any]:
    """Values of a preset, by name or path. Raises: SettingsError."""
    path = Path(preset) if preset.endswith((".yaml", ".yml")) else PRESETS / f"{preset}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in PRESETS.glob("*.yaml")))
        raise SettingsError(f"parameter preset={preset!r} is neither one of {known} nor the path of a YAML file")
    values = read_yaml(path.read_text(encoding="utf-8"), f"preset {preset}")
    if not isinstance(values, dict):
        raise SettingsError(f"preset {preset} does not hold lines of the form key: value")
    return {str(key): value for key, value in values.items()}


def read_yaml(text: str, what: str) -> Any:
    """Parsed YAML. Raises: SettingsError, one line."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{what} is not YAML ({' '.join(str(error).split())})") from None


def execute(stage: str, settings: StageSettings, folder: RunFolder) -> None:
    """Execute a stage's notebook into the run folder, showing what its cells print; exit 1 if it fails."""
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError, strip_color

    name = NOTEBOOKS[stage]
    copy = folder / "notebooks" / f"{name}.ipynb"
    copy.parent.mkdir(exist_ok=True)
    began = time.monotonic()
    typer.secho(f"{name} ...", bold=True)
    try:
        papermill.execute_notebook(
            ROOT / "notebooks" / copy.name,
            copy,
            parameters=settings.model_dump(mode="json"),
            kernel_name="python3",
            language="python",
            progress_bar=False,
            stdout_file=sys.stdout,
            # a kernel on the loopback interface need not warn that nobody encrypts what it says there
            extra_arguments=["--IPKernelApp.log_level=40"],
        )
    except (PapermillExecutionError, DeadKernelError) as error:
        where, *lines = strip_color(str(error)).lstrip("-\n").splitlines()
        shown = [f"{name} failed after {minutes_since(began)}: {where}", *lines[-6:], f"executed notebook: {copy}"]
        typer.echo("\n  ".join(shown), err=True)
        raise typer.Exit(1) from None
    typer.secho(f"{name} done in {minutes_since(began)}", bold=True)


def minutes_since(began: float) -> str:
    """Time since a `time.monotonic()`, in words."""
    return f"{(time.monotonic() - began) / 60:.1f} minutes"


def peak_memory() -> str:
    """The most memory that a notebook's process held, in words; '' where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return ""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f", at most {peak / 2**30:.1f} GiB of memory"


def show_results(folder: RunFolder) -> None:
    """Print the comparison and the calibration of a run's analysis."""
    from udrl_utils.report import calibration_table, read_metrics, systems_table

    metrics = read_metrics(folder)
    show_table("Systems on test intents, with 95% intervals", systems_table(metrics))
    show_table("Calibration: commanded against achieved", calibration_table(metrics))
    if hit := metrics["open_vocabulary"]["noun_hit_rate"]:
        typer.echo(f"prompts that keep a noun never seen in training: {hit['mean']:.1%}")


def show_table(title: str, frame: pandas.DataFrame) -> None:
    """Print a data frame, its index first."""
    from rich.console import Console
    from rich.table import Table

    frame = frame.reset_index(names=frame.index.names if frame.index.names[0] else ["system"])
    table = Table(title=title, title_justify="left")
    for column in frame:
        table.add_column(str(column).replace("_", " "))
    for row in frame.itertuples(index=False):
        table.add_row(*map(str, row))
    console = Console()
    if not console.is_terminal:
        console.width = 160  # a log has no edge to fold at
    console.print(table)


def main() -> None:
    """Entry point of the `udrl` command."""
    app()


if __name__ == "__main__":
    main()
