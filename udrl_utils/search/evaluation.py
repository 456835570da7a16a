"""`udrl search-eval`: every system on the judged searches of one catalogue, tuned on another.

In go settings, a student and language models; out come tables, and a folder with all values. Nothing here is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from udrl_utils.baselines import baselines_of
from udrl_utils.encoder import Encoder
from udrl_utils.errors import SettingsError
from udrl_utils.evaluation import written
from udrl_utils.runs import RunFolder, write_json
from udrl_utils.search.catalogue import Judged, judged_searches, load_catalogue, vectors_of
from udrl_utils.search.measures import METRICS, compare, gains, llm_prompts, means, tune
from udrl_utils.search.retrieval import Prompts, PromptSearch, Search, Space
from udrl_utils.settings import AnalysisSettings, AnnotationSettings, DistillationSettings, SearchSettings, resolve
from udrl_utils.student import Student, ready_facts

TUNED = ("rewrite_weight", "description_weight", "prompt_floor", "strong_items")


def evaluate(
    settings: SearchSettings, other: SearchSettings | None, student: str, llms: Sequence[str], home: Path
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Means and gains of all systems on the searches of `settings`; weights are tuned on those of `other`, if given.

    `home` gets results.parquet, metrics.json, the pictures of the catalogue and the replies of language models.
    Raises: SettingsError where a catalogue has no judged searches.
    """
    run = None if student == "ready" else RunFolder(Path(student) if Path(student).is_dir() else student)
    writer = Student.load(run / "03_student" if run else "ready")
    embed = Encoder(run.settings(AnnotationSettings).encoder if run else ready_facts()["encoder"])
    teachers = baselines_of(resolve(AnalysisSettings, {"baselines": list(llms)}), DistillationSettings())

    def prepared(given: SearchSettings, name: str) -> tuple[PromptSearch, list[Judged], dict[str, list[Prompts]]]:
        items, _ = load_catalogue(given, home / name)
        judged = judged_searches(given, items)
        if not judged:
            raise SettingsError(f"parameter judgements={given.judgements!r}: {given.catalog!r} has no judged searches")
        finder = PromptSearch(Search(items, [Space(embed, vectors_of(items, embed))]), writer, given)
        intents = [one.text for one in judged]
        prompts = {"student": finder.write(intents)}
        for model, teacher in teachers.items():
            prompts[model] = llm_prompts(teacher, intents, given.search_prompts, home / f"{name}-{model}.jsonl")
        return finder, judged, prompts

    finder, judged, prompts = prepared(settings, "catalogue")
    under = dict.fromkeys(prompts, settings)
    if other:
        another, known, theirs = prepared(other, "tuning")
        tuned = {who: tune(another, known, theirs[who]) for who in prompts}
        under = {who: settings.model_copy(update=best.model_dump(include=set(TUNED))) for who, best in tuned.items()}
    intents = [one.text for one in judged]
    queries = {who: finder.under(under[who]).queries(intents, texts) for who, texts in prompts.items()}
    results, covered = compare(finder.search, judged, queries)
    gained = gains(results, settings)
    groups = {"all": results} | {name: rows for key in ("words", "held") for name, rows in results.groupby(key)}
    metrics = {
        "settings": {who: chosen.model_dump(include=set(TUNED)) for who, chosen in under.items()},
        "search": {name: means(rows, settings) for name, rows in groups.items()},
        "gains": gained.to_dict("records"),
        "coverage": covered,
    }
    results.to_parquet(home / "results.parquet", index=False)
    write_json(home / "metrics.json", metrics)
    print("weights:", metrics["settings"])
    for name, rows in groups.items():
        print(f"{rows.intent.nunique()} searches, {name}: " + recall_line(rows))
    table = results.groupby("system", sort=False)[METRICS].mean().round(3).assign(coverage=covered).round(3)
    return table.dropna(axis=1, how="all"), gains_table(gained)


def recall_line(results: pd.DataFrame) -> str:
    """recall@50 of each hybrid system, in one line."""
    found = results[results.system.str.startswith("hybrid")].groupby("system", sort=False).recall_50.mean()
    return ", ".join(f"{system} {value:.3f}" for system, value in found.items())


def gains_table(gained: pd.DataFrame, metrics: Sequence[str] = ("ndcg_10", "recall_50")) -> pd.DataFrame:
    """One row per system: what it gains on which retriever, with 95% intervals and corrected p."""
    rows = gained[gained.metric.isin(metrics)]
    texts = [f"{written(row, '+.3f')} p={row['p']:.2f}" for row in rows.to_dict("records")]
    return rows.assign(text=texts).pivot(index=["against", "system"], columns="metric", values="text")
