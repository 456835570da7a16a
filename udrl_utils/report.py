"""One self-contained HTML page for a run, one for two runs, and the tables that terminal and notebooks show too."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pandas

from udrl_utils import views
from udrl_utils.deploy.costs import costs_table
from udrl_utils.evaluation import SET_METRICS, written
from udrl_utils.figures import labelled
from udrl_utils.runs import RunFolder
from udrl_utils.settings import NOTEBOOKS, RunError
from udrl_utils.views import grid, probed_codec

FIGURES = {
    "before_and_after": "What was asked for and what was written, on test intents: by the base that training starts "
    "from, by the student, and, where the ablations trained one, by a student of shuffled commands. Relevance and "
    "diversity run from the lowest to the highest of the teacher's prompts. Agreement is Spearman's rank correlation.",
    "headline": "Commanded against achieved, on test intents. A flat line would be a command that is ignored. "
    "Length is commanded in words, the others in quantile levels of the train split.",
    "comparison": "Relevance and set diversity relative to the teacher on the same intents; bars are 95% bootstrap "
    "intervals, the dashed line is the teacher.",
    "trade_off": "Relevance against set diversity. The gray path shows where the diversity command takes the student.",
    "calibration_length": "Length per task with 95% intervals; the dashed diagonal is perfect obedience.",
    "calibration_relevance": "Relevance per task with 95% intervals; the steeper the rise, the better it is obeyed.",
    "calibration_diversity": "Diversity per task with 95% intervals; the steeper the rise, the better it is obeyed.",
    "ablations": "Variants trained on an equal number of rows; a dot is a seed.",
    "edge": "The edge of the data: lengths that few or no pairs have, and levels at the very top. Diamonds: the share "
    "of the teacher's own prompts.",
    "rounds": "The front of each round on validation intents: relevance against set diversity, the teacher at 1.",
    "loss": "Loss of the student and of the plain baseline, trained on the same pairs for the same number of steps; "
    "diamonds, on validation intents, should fall with the lines.",
    "contact_sheet": "Items of the catalogue that was searched.",
    "three_commands": "One intent under three commands: the best eight items of each.",
    "image_as_intent": "Images turned into intents, and what those find.",
    "search_gains": "What each writer's prompts gain over the intent alone, with 95% bootstrap intervals.",
    "lever": "Diversity of the items found as the diversity command rises, with its 95% interval.",
    "accuracy_diversity": "nDCG@10 against diversity of the first ten items; the gray path follows the command.",
    "rewards": "What the teacher's prompts achieved: the spread that the student learns from.",
    "correlations": "Rank correlation between rewards: commands that pull against each other cannot both be extreme.",
    "pairs": "Lengths of intents and prompts: what was never short or long in training cannot be commanded later.",
    "sweeps": "One reward at a time commanded from low to high on test intents. Dots are prompts, lines their mean; on "
    "the dashed diagonal a prompt did what it was told.",
}

FORMS = {"non_words": ".1%", "fluency": ".2f"}  # how means of systems are written, where not with three digits


def read_metrics(run: RunFolder) -> dict[str, Any]:
    """04_analysis/metrics.json. Raises: RunError when the analysis has not run."""
    file = run / "04_analysis" / "metrics.json"
    if not file.exists():
        raise RunError(f"run={run.name!r} has no metrics yet: run notebooks/04_analysis.ipynb first")
    return json.loads(file.read_text())


def systems_table(metrics: dict[str, Any]) -> pandas.DataFrame:
    """Headline table: one row per system, means with 95% intervals, gap to the teacher in per cent.

    non_words is the share of words that do not exist, fluency the log-likelihood per token [nats] under another
    language model, and the last column its difference to the teacher's at the same lengths.
    """
    rows, apart = {}, metrics.get("fluency_vs_teacher", {})
    for system, label in labelled(metrics["systems"]).items():
        values = {name: metrics["systems"][system][name] for name in SET_METRICS if name in metrics["systems"][system]}
        ratios = metrics["relative_to_teacher"][system]
        row = {f"{name} vs teacher": f"{100 * (ratios[name]['mean'] - 1):+.1f}%" for name in ("relevance", "diversity")}
        cells = {metric: written(value, FORMS.get(metric, ".3g")) for metric, value in values.items()}
        rows[label] = {**cells, **row}
        if apart:
            rows[label]["fluency vs teacher"] = written(apart[system], "+.2f") if system in apart else ""
    return pandas.DataFrame(rows).T.fillna("")


def calibration_table(metrics: dict[str, Any]) -> pandas.DataFrame:
    """One row per task and reward: Spearman, and for length mean absolute error and shares within 1 and 2 words."""
    rows = [
        {"task": task, "reward": name, **{k: round(v, 3) for k, v in result.items() if k != "levels"}}
        for task, rewards in metrics["calibration"].items()
        for name, result in rewards.items()
    ]
    return pandas.DataFrame(rows).set_index(["task", "reward"]).astype(object).fillna("")


def probes_table(metrics: dict[str, Any]) -> pandas.DataFrame:
    """One row per reward: obeyed singly, all at once, with a choice of several; recognised without sampling."""
    single = metrics["calibration"]["all"]
    rows = {}
    for name in single:
        likely = metrics["likelihood"].get(name, {})
        rows[name] = {
            "Spearman, one command": single[name]["spearman"],
            "all at once": metrics["joint"].get(name),
            "and among the teacher's": metrics["joint"].get(f"{name}_among_teacher"),
            "true level likeliest": likely.get("top_1"),
            "or next to it": likely.get("within_1"),
            "by chance": likely.get("chance_within_1"),
        }
    return pandas.DataFrame(rows).T.astype(float).round(3).astype(object).where(lambda cells: cells.notna(), "")


def ablations_table(metrics: dict[str, Any]) -> pandas.DataFrame:
    """One row per variant: mean over seeds, with the lowest and the highest seed."""
    table = pandas.DataFrame(metrics["ablations"]).drop(columns="seed").groupby("variant", sort=False)
    return pandas.DataFrame(
        {
            name: [f"{rows[name].mean():.2f} [{rows[name].min():.2f}, {rows[name].max():.2f}]" for _, rows in table]
            for name in metrics["ablations"][0]
            if name not in ("variant", "seed")
        },
        index=[variant for variant, _ in table],
    )


def examples(samples: pandas.DataFrame, per_task: int = 3) -> pandas.DataFrame:
    """A few intents with what teacher and student wrote for them."""
    chosen = samples[samples.system.isin(["teacher", "student_best"])].drop_duplicates(["system", "task", "intent"])
    wide = chosen.pivot(index=["task", "intent"], columns="system", values="prompt").dropna()
    return wide.groupby(level="task").head(per_task).reset_index()


def flat(value: Any, name: str = "") -> dict[str, str]:
    """Nested metrics as {name: cell}; a mean with its interval is one cell."""
    if isinstance(value, dict) and not {"mean", "low", "high"} <= value.keys():
        parts = [flat(part, f"{name} {key}".strip()) for key, part in value.items()]
        return {key: cell for part in parts for key, cell in part.items()}
    if isinstance(value, dict):
        return {name: written(value)}
    return {name: f"{value:.4g}" if isinstance(value, float) else str(value)}


def metric_tables(metrics: dict[str, Any]) -> dict[str, pandas.DataFrame]:
    """Any stage's metrics as tables: lists of rows and nested entries one each, single values together."""
    tables, single = {}, {}
    for name, value in metrics.items():
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            tables[name] = pandas.DataFrame([flat(row) for row in value])
        elif isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
            tables[name] = pandas.DataFrame(
                {key: flat(row, "value" if "mean" in row else "") for key, row in value.items()}
            ).T
        else:
            single |= flat(value, name)
    if single:
        tables = {"in short": pandas.DataFrame({"value": single}), **tables}
    return {name.replace("_", " "): table.fillna("") for name, table in tables.items()}


def figures_of(run: RunFolder, stage: str) -> list[dict[str, Any]]:
    """A stage's figures as they go into a page: name, caption, width to show and data; known ones first."""
    files = {file.stem: file for file in sorted((run / stage).glob("*figures/*.png"))}
    names = [name for name in FIGURES if name in files] + [name for name in files if name not in FIGURES]
    found = []
    for name in names:
        data = files[name].read_bytes()
        width = int.from_bytes(data[16:20]) // 2  # of a PNG; half its pixels, so that it stays crisp on any screen
        caption = FIGURES.get(name, f"{name.replace('_', ' ').capitalize()}.")
        found.append({"name": name, "caption": caption, "width": width, "data": base64.b64encode(data).decode()})
    return found


def sections(run: RunFolder) -> list[dict[str, Any]]:
    """What each stage but the analysis has to show, the latest first; stages that were not run are left out."""
    found = []
    for stage in sorted(run.read()["stages"], reverse=True):
        if stage == "04_analysis":
            continue
        file, sweeps = run / stage / "metrics.json", run / stage / "sweeps.parquet"
        metrics = json.loads(file.read_text()) if file.exists() else {}
        section = {
            "stage": stage,
            "title": NOTEBOOKS[stage][3:].replace("_", " ").capitalize().replace("Udrl", "UDRL"),
            "figures": figures_of(run, stage),
            "tables": {name: views.table(table) for name, table in metric_tables(metrics).items()},
        }
        if sweeps.exists():
            section["cards"] = views.probe(grid(pandas.read_parquet(sweeps)), probed_codec(run))
        if section["figures"] or section["tables"]:
            found.append(section)
    return found


def build(run: RunFolder) -> Path:
    """Write outputs/<run>/report.html and return its path; every text in it is escaped."""
    metrics, record = read_metrics(run), run.read()
    samples = pandas.read_parquet(run / "04_analysis" / "samples.parquet")
    page = views.template("report.html").render(
        run=run.name,
        metrics=metrics,
        best=metrics["relative_to_teacher"]["student_best"],
        calibration_all=metrics["calibration"]["all"],
        tables={
            "systems": views.table(systems_table(metrics)),
            "costs": views.table(costs_table(metrics)),
            "calibration": views.table(calibration_table(metrics)),
            "probes": views.table(probes_table(metrics)),
            "examples": views.table(examples(samples), index=False),
        },
        figures={figure["name"]: figure for figure in figures_of(run, "04_analysis")},
        sections=sections(run),
        stages=record["stages"],
        environment=record["environment"],
    )
    path = run / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def titles(first: RunFolder, second: RunFolder) -> list[str]:
    """What two runs are called side by side: their names, or their folders where the names are the same."""
    return [run.name if first.name != second.name else str(run.path) for run in (first, second)]


def differences(first: RunFolder, second: RunFolder) -> pandas.DataFrame:
    """Settings, machine and versions that differ between two runs, one row each."""

    def facts(run: RunFolder) -> dict[str, str]:
        record = run.read()
        stages = {stage: made["settings"] for stage, made in record.get("stages", {}).items()}
        return flat({**stages, "environment": record.get("environment", {})})

    columns = facts(first), facts(second)
    names = [name for name in columns[0] | columns[1] if not name.endswith(" run")]
    rows = {name: [facts.get(name, "") for facts in columns] for name in names}
    rows = {name: cells for name, cells in rows.items() if cells[0] != cells[1]}
    return pandas.DataFrame.from_dict(rows, orient="index", columns=titles(first, second))


def results_side_by_side(first: RunFolder, second: RunFolder) -> pandas.DataFrame:
    """Calibration over all tasks and the student's place beside its teacher, a column per run."""

    def results(run: RunFolder) -> dict[str, str]:
        metrics = read_metrics(run)
        calibration = calibration_table(metrics).loc["all"]
        obeyed = {
            f"{name} {key}": cell for name, row in calibration.iterrows() for key, cell in row.items() if cell != ""
        }
        systems = systems_table(metrics)
        return obeyed | {
            f"{system}: {name}": systems.loc[system, name]
            for system in systems.index
            for name in systems
            if isinstance(systems.loc[system, name], str)
        }

    columns = zip(titles(first, second), map(results, (first, second)), strict=True)
    return pandas.DataFrame(dict(columns)).fillna("")


def compare(first: RunFolder, second: RunFolder) -> Path:
    """Write outputs/<first>/compare_<second>.html, a page with the two runs side by side, and return its path."""
    names = [figure["name"] for figure in figures_of(first, "04_analysis")]
    found = [{figure["name"]: figure for figure in figures_of(run, "04_analysis")} for run in (first, second)]
    page = views.template("compare.html").render(
        names=titles(first, second),
        differences=views.table(differences(first, second)),
        results=views.table(results_side_by_side(first, second)),
        figures=[(found[0][name], found[1][name]) for name in names if name in found[1]],
    )
    path = first / f"compare_{second.name}.html"
    path.write_text(page, encoding="utf-8")
    return path
