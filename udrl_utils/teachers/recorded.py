"""The recorded teacher: what a real language model wrote for intents of the ontology, kept as data with a card.

A run with teacher=recorded reads it. Prompts are kept as they were written; each run filters and splits them itself.
recording.py makes the recording.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pandas as pd

from udrl_utils.errors import SettingsError
from udrl_utils.settings import DistillationSettings
from udrl_utils.tables import load_intents
from udrl_utils.tasks import DATA
from udrl_utils.teachers.replies import Journal, Request
from udrl_utils.text import lower_intent

RECORDED = DATA / "recorded"
OTHERWISE = "a model on this machine (teacher=local) or a server (teacher=openai) writes for any intent"


def recorded_sets(folder: Path | None = None) -> dict[tuple[str, str], list[str]]:
    """Prompts by (task, intent), in the order of their recording; the package's own, or a folder's."""
    return _sets(folder or RECORDED)


@cache
def _sets(folder: Path) -> dict[tuple[str, str], list[str]]:
    table = pd.read_parquet(folder / "prompts.parquet")
    return table.groupby(["task", "intent"], sort=False).prompt.apply(list).to_dict()


def recorded_name(folder: Path | None = None) -> str:
    """Name of the model that wrote them."""
    return json.loads(((folder or RECORDED) / "recording.json").read_text())["model"]


def recorded_requests(settings: DistillationSettings) -> list[Request]:
    """What a run asks of the recorded teacher: the recorded intents of its tasks, or those of a file.

    Where fewer were recorded than n_intents, all are asked for, and a line says so.
    Raises: SettingsError when nothing was recorded for the tasks, or for an intent of the file.
    """
    tasks, n = settings.tasks, settings.prompts_per_intent
    if settings.intents == "ontology":
        sets = recorded_sets()
        held = [Request(*key, min(n, len(prompts))) for key, prompts in sets.items() if key[0] in tasks]
        if not held:
            raise SettingsError(f"parameter tasks={tasks}: nothing was recorded for them; {OTHERWISE}")
        if settings.n_intents > len(held):
            print(f"n_intents={settings.n_intents}, and {len(held)} were recorded for {', '.join(tasks)}", flush=True)
        return held[: settings.n_intents or None]
    typed = enumerate(load_intents(settings))
    wanted = [Request(tasks[k % len(tasks)], lower_intent(intent), n) for k, intent in typed]
    missing = [request for request in wanted if (request.task, request.intent) not in recorded_sets()]
    if missing:
        raise SettingsError(
            f"parameter intents={settings.intents!r}: nothing was recorded for {missing[0].intent!r} as "
            f"{missing[0].task}, nor for {len(missing) - 1} others; {OTHERWISE}"
        )
    return wanted


class RecordedTeacher:
    """Answers with the prompts of (task, intent) that are there already, and leaves the journal empty."""

    def __init__(self, name: str, sets: dict[tuple[str, str], list[str]]):
        self.name, self.sets = name, sets

    def write(self, requests: Sequence[Request], journal: Journal) -> list[list[str]]:
        """Prompts of each request, at most n. Raises: SettingsError for what was not recorded."""
        for request in requests:
            if (request.task, request.intent) not in self.sets:
                raise SettingsError(f"nothing was recorded for {request.intent!r} as {request.task}; {OTHERWISE}")
        return [self.sets[request.task, request.intent][: request.n] for request in requests]
