"""The report of a run and the comparison of two, as HTML pages that open offline, and the tables that they show.

In go `run.json`, `04_analysis/metrics.json` and the executed notebooks of a run folder, all of them read as data:
nothing in the folder is executed, and no markup in it reaches a page that could run something or load something.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bleach
import nbformat
import pandas as pd
from bleach.css_sanitizer import CSSSanitizer
from nbconvert import HTMLExporter

from udrl_utils import views
from udrl_utils.errors import RunError
from udrl_utils.evaluation import SET_METRICS, written
from udrl_utils.figures import labelled
from udrl_utils.runs import RunFolder
from udrl_utils.settings import NOTEBOOKS

# how means of systems are written, where not with three digits
FORMS = {"non_words": ".1%", "broken": ".1%", "fluency": ".2f"}


def read_metrics(run: RunFolder) -> dict[str, Any]:
    """04_analysis/metrics.json. Raises: RunError when the analysis has not run."""
    file = run / "04_analysis" / "metrics.json"
    if not file.exists():
        raise RunError(f"run={run.name!r} has no metrics yet: run notebooks/04_analysis.ipynb first")
    return json.loads(file.read_text())


def summary_table(metrics: dict[str, Any]) -> pd.DataFrame:
    """The result in a few rows: columns value, with its 95% interval where it has one, and meaning."""
    best, calibration = metrics["relative_to_teacher"]["student_best"], metrics["calibration"]["all"]
    rows = {
        f"{name} at the best command": (written(best[name], ".1%"), "of the teacher's mean on the same test intents")
        for name in ("relevance", "diversity")
    }
    for name, found in calibration.items():
        meaning = "rank correlation of what was commanded and what was achieved: 1 obeys, 0 ignores"
        rows[f"{name} command"] = (f"{found['spearman']:.3f}", meaning)
    if "within_2" in calibration.get("length", {}):
        share = f"{calibration['length']['within_2']:.1%}"
        rows["length within 2 words"] = (share, "of prompts, of the commanded length")
    if hit := metrics["open_vocabulary"]["noun_hit_rate"]:
        rows["unseen nouns"] = (written(hit, ".1%"), "of prompts keep a noun that never occurred in training")
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "meaning"])


def systems_table(metrics: dict[str, Any]) -> pd.DataFrame:
    """Headline table: one row per system, means with 95% intervals, gap to the teacher in per cent.

    non_words is the share of words that do not exist, broken that of prompts in a loop or unreadable, fluency the
    log-likelihood per token [nats] under another language model, and the last column its difference to the teacher's
    at the same lengths.
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
    return pd.DataFrame(rows).T.fillna("")


def calibration_table(metrics: dict[str, Any]) -> pd.DataFrame:
    """One row per task and reward: Spearman, and for length mean absolute error and shares within 1 and 2 words."""
    rows = [
        {"task": task, "reward": name, **{k: round(v, 3) for k, v in result.items() if k != "levels"}}
        for task, rewards in metrics["calibration"].items()
        for name, result in rewards.items()
    ]
    return pd.DataFrame(rows).set_index(["task", "reward"]).astype(object).fillna("")


def probes_table(metrics: dict[str, Any]) -> pd.DataFrame:
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
    return pd.DataFrame(rows).T.astype(float).round(3).astype(object).where(lambda cells: cells.notna(), "")


def ablations_table(metrics: dict[str, Any]) -> pd.DataFrame:
    """One row per variant: mean over seeds, with the lowest and the highest seed."""
    variants = pd.DataFrame(metrics["ablations"]).drop(columns="seed").groupby("variant", sort=False)
    table = variants.agg(lambda seeds: f"{seeds.mean():.2f} [{seeds.min():.2f}, {seeds.max():.2f}]")
    return table.rename_axis(None)


def examples(samples: pd.DataFrame) -> pd.DataFrame:
    """A few intents with what teacher and student wrote for them."""
    chosen = samples.loc[samples.system.isin(["teacher", "student_best"])].drop_duplicates(["system", "task", "intent"])
    wide = chosen.pivot(index=["task", "intent"], columns="system", values="prompt").dropna()
    return wide.groupby(level="task").head(3).reset_index()


# Elements and attributes of a notebook's outputs that reach a report.
ELEMENTS = {
    *("h1", "h2", "h3", "h4", "h5", "h6", "p", "div", "section", "article", "blockquote", "pre", "hr", "br"),
    *("a", "b", "bdi", "code", "del", "em", "i", "small", "span", "strong", "sub", "sup", "details", "summary"),
    *("table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td", "dl", "dt", "dd", "ol", "ul", "li", "img"),
}
PROPERTIES = {"display", "gap", "grid-template-columns", "flex-wrap", "left", "max-width", "text-align", "width"}
PLAIN_ATTRIBUTES = {"alt", "class", "colspan", "dir", "height", "rowspan", "style", "title", "width"}


def is_harmless(element: str, attribute: str, value: str) -> bool:
    """Whether an attribute may stay: no event handler, no id, no link but to the web, no image but an embedded one."""
    if attribute == "src":
        return element == "img" and re.match(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=\s]*$", value) is not None
    if attribute == "href":
        return element == "a" and value.startswith("https://")
    return attribute in PLAIN_ATTRIBUTES


def harmless(markup: str) -> str:
    """The markup without scripts, styles, forms, frames and anything else that could run or load something."""
    markup = re.sub(r"<(script|style)\b.*?</\1\s*>", "", markup, flags=re.DOTALL | re.IGNORECASE)  # with what they hold
    return bleach.clean(
        markup,
        tags=ELEMENTS,
        attributes=is_harmless,
        protocols={"https", "data"},
        css_sanitizer=CSSSanitizer(allowed_css_properties=PROPERTIES),
        strip=True,
    )


def chapter(file: Path) -> str:
    """An executed notebook as HTML without its code; '' when it has not run to its end. Raises: RunError."""
    try:
        notebook = nbformat.read(file, 4)
    except ValueError:
        raise RunError(f"{file} is not a notebook: delete it, or run it again") from None
    executed = notebook.metadata.get("papermill", {})
    if executed.get("exception") or not executed.get("end_time"):
        return ""
    sentence = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            sentence = cell.source.strip().splitlines()[-1]
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):  # the sentence before a figure describes it
                output.metadata["image/png"] = {**output.metadata.get("image/png", {}), "alt": sentence}
    exporter = HTMLExporter(
        template_name="basic",
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
    )
    return harmless(exporter.from_notebook_node(notebook)[0])


def chapters(run: RunFolder) -> dict[str, str]:
    """Title and HTML of each executed notebook of a run, the analysis first."""
    names = sorted(NOTEBOOKS.values(), key=lambda name: (name != NOTEBOOKS["04_analysis"], name))
    files = {name: run / "notebooks" / f"{name}.ipynb" for name in names}
    found = {name: chapter(file) for name, file in files.items() if file.exists()}
    return {name: html for name, html in found.items() if html}


def build(run: RunFolder) -> Path:
    """Write outputs/<run>/report.html, a summary and the executed notebooks, and return its path. Raises: RunError."""
    page = views.render(
        "report.html",
        run=run.name,
        summary=views.table(summary_table(read_metrics(run))),
        chapters=chapters(run),
        facts=views.table(facts(run).to_frame("value")),
    )
    path = run / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def titles(first: RunFolder, second: RunFolder) -> list[str]:
    """What two runs are called side by side: their names, or their folders where the names are the same."""
    return [run.name if first.name != second.name else str(run.path) for run in (first, second)]


def facts(run: RunFolder) -> pd.Series:
    """Settings of every stage and the environment that a run was made in, as texts by name."""
    record = run.read()
    stages = {stage: made["settings"] for stage, made in record.get("stages", {}).items()}
    [found] = pd.json_normalize([{**stages, "environment": record.get("environment", {})}], sep=" ").to_dict("records")
    cells = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in found.items()}
    return pd.Series({str(name): cell for name, cell in cells.items() if not str(name).endswith(" run")}, dtype=str)


def side_by_side(shown: Callable[[RunFolder], pd.Series], first: RunFolder, second: RunFolder) -> pd.DataFrame:
    """What is shown of each of two runs, a column per run; '' where one of them has nothing to show."""
    return pd.concat([shown(first), shown(second)], axis=1, keys=titles(first, second)).fillna("")


def differences(first: RunFolder, second: RunFolder) -> pd.DataFrame:
    """Settings, machine and versions that differ between two runs, one row each."""
    both = side_by_side(facts, first, second)
    return both.loc[both.iloc[:, 0] != both.iloc[:, 1]]


def results_side_by_side(first: RunFolder, second: RunFolder) -> pd.DataFrame:
    """The summary and the measures of every system with 95% intervals where they have one, a column per run."""

    def results(run: RunFolder) -> pd.Series:
        metrics = read_metrics(run)
        systems = systems_table(metrics)
        cells = {f"{who}: {what}": row[what] for who, row in systems.iterrows() for what in systems}
        return pd.Series({**summary_table(metrics)["value"], **cells})

    return side_by_side(results, first, second)


def compare(first: RunFolder, second: RunFolder) -> Path:
    """Write outputs/<first>/compare_<second>.html, two runs side by side, and return its path. Raises: RunError."""
    page = views.render(
        "compare.html",
        names=titles(first, second),
        results=views.table(results_side_by_side(first, second)),
        differences=views.table(differences(first, second)),
    )
    path = first / f"compare_{second.name}.html"
    path.write_text(page, encoding="utf-8")
    return path
