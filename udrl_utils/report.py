"""One self-contained HTML page for a run, and the same headline table for the terminal and the notebooks."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udrl_utils.evaluation import SET_METRICS
from udrl_utils.figures import labelled
from udrl_utils.runs import RunFolder
from udrl_utils.settings import RunError

if TYPE_CHECKING:
    import pandas

FIGURES = {
    "headline": "Commanded against achieved, on test intents. A flat line would be a command that is ignored. "
    "Length is commanded in words, the others in quantile levels of the train split.",
    "comparison": "Relevance and set diversity relative to the teacher on the same intents; bars are 95% bootstrap "
    "intervals, the dashed line is the teacher.",
    "trade_off": "Relevance against set diversity. The gray path shows where the diversity command takes the student.",
    "calibration_length": "Length per task with 95% intervals; the dashed diagonal is perfect obedience.",
    "calibration_relevance": "Relevance per task with 95% intervals.",
    "calibration_diversity": "Diversity per task with 95% intervals.",
    "ablations": "Variants trained on an equal number of rows; a dot is a seed.",
    "edge": "The edge of the data: lengths that few or no pairs have, and levels at the very top. Diamonds: the share "
    "of the teacher's own prompts.",
    "rounds": "The front of each round on validation intents: relevance against set diversity, the teacher at 1.",
    "loss": "Loss of the student and of the plain baseline, trained on the same pairs for the same number of steps.",
    "contact_sheet": "Items of the catalogue that was searched.",
    "three_commands": "One intent under three commands: the best eight items of each.",
    "image_as_intent": "Images turned into intents, and what those find.",
    "search_gains": "What each writer's prompts gain over the intent alone, with 95% bootstrap intervals.",
    "lever": "Diversity of the items found as the diversity command rises, with its 95% interval.",
    "accuracy_diversity": "nDCG@10 against diversity of the first ten items; the gray path follows the command.",
    "rewards": "What the teacher's prompts achieved: the spread that the student learns from.",
    "correlations": "Rank correlation between rewards: commands that pull against each other cannot both be extreme.",
    "pairs": "Lengths of intents and prompts.",
}


def read_metrics(run: RunFolder) -> dict[str, Any]:
    """04_analysis/metrics.json. Raises: RunError when the analysis has not run."""
    file = run / "04_analysis" / "metrics.json"
    if not file.exists():
        raise RunError(f"run={run.name!r} has no metrics yet: run notebooks/04_analysis.ipynb first")
    return json.loads(file.read_text())


def systems_table(metrics: dict[str, Any]) -> pandas.DataFrame:
    """Headline table: one row per system, means with 95% intervals, gap to the teacher in per cent."""
    import pandas

    rows = {}
    for system, label in labelled(metrics["systems"]).items():
        values = {name: metrics["systems"][system][name] for name in SET_METRICS if name in metrics["systems"][system]}
        ratios = metrics["relative_to_teacher"][system]
        row = {f"{name} vs teacher": f"{100 * (ratios[name]['mean'] - 1):+.1f}%" for name in ("relevance", "diversity")}
        cells = {metric: f"{v['mean']:.3g} [{v['low']:.3g}, {v['high']:.3g}]" for metric, v in values.items()}
        rows[label] = {**cells, **row}
    return pandas.DataFrame(rows).T


def calibration_table(metrics: dict[str, Any]) -> pandas.DataFrame:
    """One row per task and reward: Spearman, and for length mean absolute error and shares within 1 and 2 words."""
    import pandas

    rows = [
        {"task": task, "reward": name, **{k: round(v, 3) for k, v in result.items() if k != "levels"}}
        for task, rewards in metrics["calibration"].items()
        for name, result in rewards.items()
    ]
    return pandas.DataFrame(rows).set_index(["task", "reward"]).astype(object).fillna("")


def probes_table(metrics: dict[str, Any]) -> pandas.DataFrame:
    """One row per reward: obeyed singly, all at once, with a choice of several; recognised without sampling."""
    import pandas

    single, several = metrics["calibration"]["all"], metrics["best_of_n"]
    rows = {}
    for name in single:
        likely, choice = metrics["likelihood"].get(name, {}), several.get(name, {})
        rows[name] = {
            "Spearman, one command": single[name]["spearman"],
            "all at once": metrics["joint"].get(name),
            f"best of {several['tries']}": choice.get("best_of_n"),
            "true level likeliest": likely.get("top_1"),
            "or next to it": likely.get("within_1"),
            "by chance": likely.get("chance_within_1"),
        }
    return pandas.DataFrame(rows).T.astype(float).round(3).astype(object).where(lambda cells: cells.notna(), "")


def costs_table(metrics: dict[str, Any]) -> pandas.DataFrame:
    """One row per system whose cost is known: parameters, weights and seconds per set, with their 95% interval."""
    import pandas

    rows = {}
    for system, cost in metrics["costs"].items():
        seconds = cost["seconds_per_set"]
        rows[labelled([system])[system]] = {
            "parameters [M]": f"{cost['parameters'] / 1e6:.1f}" if cost["parameters"] else "on a server",
            "weights [MB]": f"{cost['weights_mb']:.0f}" if cost["weights_mb"] else "on a server",
            "seconds per set": f"{seconds['mean']:.2f} [{seconds['low']:.2f}, {seconds['high']:.2f}]"
            if seconds
            else "",
        }
    return pandas.DataFrame(rows).T


def ablations_table(metrics: dict[str, Any]) -> pandas.DataFrame:
    """One row per variant: mean over seeds, with the lowest and the highest seed."""
    import pandas

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


def build(run: RunFolder) -> Path:
    """Write outputs/<run>/report.html and return its path; every text in it is escaped."""
    import jinja2
    import pandas

    metrics, record = read_metrics(run), run.read()
    files = {file.stem: file for file in sorted(run.path.glob("0*/*figures/*.png"))}
    images = [
        (name, text, base64.b64encode(files[name].read_bytes()).decode())
        for name, text in FIGURES.items()
        if name in files
    ]
    samples = pandas.read_parquet(run / "04_analysis" / "samples.parquet")
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "data")
    template = jinja2.Environment(loader=loader, autoescape=True).get_template("report.html")
    page = template.render(
        run=run.name,
        metrics=metrics,
        best=metrics["relative_to_teacher"]["student_best"],
        calibration_all=metrics["calibration"]["all"],
        # pandas escapes the cells itself
        tables={
            "systems": systems_table(metrics).to_html(border=0),
            "costs": costs_table(metrics).to_html(border=0),
            "calibration": calibration_table(metrics).to_html(border=0),
            "probes": probes_table(metrics).to_html(border=0),
            "examples": examples(samples).to_html(border=0, index=False),
        },
        images=images,
        stages=record["stages"],
        environment=record["environment"],
    )
    path = run / "report.html"
    path.write_text(page, encoding="utf-8")
    return path
