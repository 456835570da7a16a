"""The recording: what a run's local or served teacher wrote, packed for everybody else.

In goes a run, finished or cut off; out come prompts.parquet, recording.json and a card. A set of prompts is packed
once all replies to its request are there. Nothing is filtered here.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from udrl_utils.errors import RunError
from udrl_utils.language_models import PACKED
from udrl_utils.pairs import journal_of, kept_pairs, plan, shards
from udrl_utils.runs import RunFolder, read_stamp, write_json
from udrl_utils.settings import DistillationSettings
from udrl_utils.teachers import make_teacher
from udrl_utils.teachers.local import MIN_P
from udrl_utils.teachers.recorded import RECORDED
from udrl_utils.teachers.replies import Journal, read_singles


def record(run: RunFolder, folder: Path = RECORDED, add: bool = False) -> dict[str, Any]:
    """Pack what a run's local or served teacher has written so far: prompts.parquet, recording.json and a card.

    `add` keeps what the folder holds, and adds the sets of other intents. Returns the content of recording.json.
    Raises: RunError when there is nothing to pack, or the folder holds what another teacher wrote.
    """
    settings = settings_of(run)
    rows, counts = written_sets(run, settings)
    if not rows:
        raise RunError(f"run={run.name!r}: its teacher has not written a whole set yet")
    table = pd.DataFrame(rows, columns=["task", "intent", "prompt"])
    asked = {
        "model": Path(settings.teacher_model).name.removesuffix(".gguf"),
        "form": settings.teacher_form,
        "temperature": settings.teacher_temperature,
    }
    parts = [{"seed": settings.seed, "per_intent": settings.prompts_per_intent, "prompts": len(table), **counts}]
    if add:
        held, before = pd.read_parquet(folder / "prompts.parquet"), json.loads((folder / "recording.json").read_text())
        for name, value in asked.items():
            if before[name] != value:
                raise RunError(f"the recording has {name}={before[name]!r}, run={run.name!r} has {value!r}")
        known = set(zip(held.task, held.intent, strict=True))
        new = [key not in known for key in zip(table.task, table.intent, strict=True)]
        others = [part for part in before["parts"] if part["seed"] != settings.seed]  # a part that went on is whole now
        table, parts = pd.concat([held, table[new]]), [*others, *parts]
    intents = table.drop_duplicates(["task", "intent"]).groupby("task", sort=False).size().to_dict()
    recording = {**asked, "parts": parts, "prompts": len(table), "intents": intents}
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / "prompts.parquet", index=False, compression="zstd")
    write_json(folder / "recording.json", recording)
    (folder / "README.md").write_text(recording_card(recording), encoding="utf-8")
    return recording


def settings_of(run: RunFolder) -> DistillationSettings:
    """How the pairs of a run are made, finished or cut off. Raises: RunError when no model has written them."""
    found = read_stamp(run / "01_pairs")
    if found is None:
        raise RunError(f"run={run.name!r} has no pairs yet: run notebooks/01_teacher_distillation.ipynb first")
    made = found["settings"]
    if made["teacher"] == "recorded" or made["pairs"] or made["teacher_form"] != "single":
        raise RunError(f"run={run.name!r}: recorded is what a local or served teacher writes with teacher_form=single")
    elsewhere = {"run": run.name, "teacher_base_urls": [], "teacher_prices": [], "teacher_budget": 0}
    return DistillationSettings(**made, **elsewhere, teacher_concurrency=1, teacher_timeout=1)


def written_sets(run: RunFolder, settings: DistillationSettings) -> tuple[list[tuple[str, str, str]], Counter]:
    """(task, intent, prompt) of a run's complete sets, unfiltered, and the counts of what notebook 01 would drop."""
    teacher, sets = make_teacher(settings), {}
    for file, requests in shards(run / "01_pairs", plan(settings), settings):
        journal = Journal(journal_of(file))
        for request in requests if journal.replies else []:
            replies = teacher.replies(request, journal)
            if None not in replies:
                sets[request] = read_singles(replies)
    _, counts, _ = kept_pairs(list(sets), list(sets.values()), {}, teacher.name, settings, frozenset())
    return [(request.task, request.intent, prompt) for request, prompts in sets.items() for prompt in prompts], +counts


def recording_card(recording: dict[str, Any]) -> str:
    """The card of the recorded prompts: who wrote them, how they were asked for, and what is there."""
    packed = next((one for one in PACKED.values() if Path(one.file).stem == recording["model"]), None)
    file = f", file `{packed.file}`, sha256 `{packed.sha256}`" if packed else ""
    parts = [", ".join(f"{name} {value}" for name, value in part.items()) for part in recording["parts"]]
    return f"""# Prompts that a language model wrote

{recording["prompts"]} prompts in the order in which they were written: columns task, intent, prompt.
Intents: {", ".join(f"{n} of {task}" for task, n in recording["intents"].items())}.

- Model: `{recording["model"]}`{file}; weights: Apache-2.0
- Asked in the form `{recording["form"]}`: the instruction and three examples of `data/tasks.yaml` as chat turns;
  short, middling and long prompts in turn
- Sampling: temperature {recording["temperature"]}, min-p {MIN_P}
- Intents: drawn from `data/ontology`, `data/intents.yaml` and `data/vocabulary.yaml`, written for this project
- Licence: that of this workbook

Prompts are kept as they came; a run that reads them filters them. What the filters of notebook 01 find, by part:

- {f"{chr(10)}- ".join(parts)}

Made by `udrl run --preset record --to 1`, then `udrl record record`; further parts with `--set seed=` and `--add`.
"""
