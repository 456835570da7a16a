"""Judged searches as a benchmark: retrievers, baselines, and expansion by a student and other language models.

In go a judged catalogue, the search settings and the writers of prompts; out come tables of measures and gains, kept in
a folder. How one search works is not known here.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from udrl_utils.encoder import Embed, Encoder
from udrl_utils.errors import SettingsError
from udrl_utils.runs import write_json
from udrl_utils.search import measures
from udrl_utils.search.catalogue import Judged, judged_searches, load_catalogue, vectors_of
from udrl_utils.search.retrieval import Prompts, PromptSearch, Search, Space, llm_prompts
from udrl_utils.settings import AnnotationSettings, SearchSettings
from udrl_utils.student import Student, find_student
from udrl_utils.teachers import Teacher


def prepare(
    settings: SearchSettings, writer: Student, embed: Embed, llms: dict[str, Teacher], home: Path
) -> tuple[PromptSearch, list[Judged], dict[str, list[Prompts]]]:
    """A catalogue that is loaded into `home`, its judged searches, and the prompts of each writer for them.

    Raises: SettingsError when no search is judged.
    """
    items, _ = load_catalogue(settings, home / "items")
    judged = judged_searches(settings, items)
    if not judged:
        raise SettingsError(f"parameter judgements={settings.judgements!r} should name the judged searches")
    finder = PromptSearch(Search(items, [Space(embed, vectors_of(items, embed))]), writer, settings)
    intents, replies = [one.text for one in judged], {who: home / f"{who.replace('/', '_')}.jsonl" for who in llms}
    asked = {who: llm_prompts(llm, intents, settings.search_prompts, replies[who]) for who, llm in llms.items()}
    return finder, judged, {**asked, "student": finder.write(intents)}


def search_eval(
    settings: SearchSettings, student: str, llms: dict[str, Teacher], home: Path, tune_on: SearchSettings | None
) -> dict[str, pd.DataFrame]:
    """Tables by title: the weights of each writer, measures by group of searches, and gains. Kept in `home` too.

    student: as `find_student` takes it. tune_on: settings of another catalogue, on which each writer's weights, floor
    and threshold are chosen; they are used here unchanged.
    """
    found = find_student(student)
    writer, embed = Student.load(found.folder), Encoder(found.encoder or AnnotationSettings().encoder)
    finder, judged, prompts = prepare(settings, writer, embed, llms, home / "catalogue")
    under = dict.fromkeys(prompts, settings)
    if tune_on:
        other, known, elsewhere = prepare(tune_on, writer, embed, llms, home / "tuning")
        under = {who: measures.tune(other, known, texts) for who, texts in elsewhere.items()}
    search, intents = finder.search, [one.text for one in judged]
    queries = {who: PromptSearch(search, writer, under[who]).queries(intents, ps) for who, ps in prompts.items()}
    results, covered = measures.compare(search, judged, queries)
    tuned = {who: {name: getattr(one, name) for name in measures.TUNED} for who, one in under.items()}
    gained, groups = measures.gains(results, settings), measures.grouped(results)
    by_group = {name: measures.means(rows, settings) for name, rows in groups.items()}
    metrics = {"weights": tuned, "search": by_group, "gains": gained.to_dict("records"), "coverage": covered}
    write_json(home / "metrics.json", metrics)
    results.to_parquet(home / "results.parquet", index=False)
    tables = {"Weights": pd.DataFrame(tuned)}
    for name, rows in groups.items():
        means = pd.DataFrame(rows.groupby("system", sort=False)[measures.METRICS].mean()).assign(coverage=covered)
        tables[f"{rows.intent.nunique()} searches, {name}"] = means.dropna(axis=1).round(3)
    title = "Gains on the retriever alone, with 95% intervals and corrected p"
    return {**tables, title: measures.gains_table(gained)}
