"""Baselines: language models that write prompts for the test intents as a teacher would, and what each system costs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd

from udrl_utils.commands import Command
from udrl_utils.deploy.latency import timed
from udrl_utils.errors import SettingsError
from udrl_utils.evaluation import interval
from udrl_utils.filters import reject_reasons
from udrl_utils.language_models import located
from udrl_utils.runs import RunFolder
from udrl_utils.settings import AnalysisSettings, DistillationSettings
from udrl_utils.student import Student
from udrl_utils.teachers import Teacher, make_teacher
from udrl_utils.teachers.local import LocalTeacher
from udrl_utils.teachers.replies import Journal, Request

FORM = re.compile(r"local:(?P<local>\S+)|openai:(?P<served>\S+)@(?P<url>https?://[^\s@]+)")
TIMED = 4  # sets that are asked for one after the other, to see how long one takes


def baselines_of(settings: AnalysisSettings, distillation: DistillationSettings) -> dict[str, Teacher]:
    """Baselines by the name of their model, asked as the run's teacher would be.

    A local .gguf file that is not there is left out, and a line says so. Raises: SettingsError.
    """
    found: dict[str, Teacher] = {}
    for text in settings.baselines:
        form = FORM.fullmatch(text)
        if not form:
            raise SettingsError(
                f"parameter baselines: {text!r} is neither local:<model> nor openai:<model>@<http address>"
            )
        name = form["local"] or form["served"]
        if form["local"] and name.endswith(".gguf") and not located(name).exists():
            print(f"baseline left out: there is no {name}; `make llm` fetches the presets' file", flush=True)
            continue
        backend = {"teacher": "local" if form["local"] else "openai", "teacher_model": name}
        asked = distillation.model_copy(update={**backend, "teacher_base_urls": [form["url"]] if form["url"] else []})
        teacher = make_teacher(asked)
        found[teacher.name.removesuffix(".gguf")] = teacher
    return found


def ask_baselines(
    baselines: dict[str, Teacher], intents: dict[str, list[str]], run: RunFolder, settings: AnalysisSettings
) -> tuple[dict[str, pd.DataFrame], dict[str, dict[str, Any]]]:
    """Prompts of each baseline (task, intent, prompt) that the run's filters let pass, and its costs.

    Replies are kept in 04_analysis/baselines, so that a second analysis pays for none of them again.
    """
    rules = run.settings(DistillationSettings)
    requests = [Request(task, i, rules.prompts_per_intent) for task, pool in intents.items() for i in pool]
    tables, costs = {}, {}
    for name, teacher in baselines.items():
        journal = Journal(journal_of(run, name))
        alone = requests[:TIMED] if not journal.replies else []
        seconds = timed(lambda r, t=teacher, j=journal: t.write([r], j), alone)
        rows = written_by(teacher, requests, journal)
        tables[name] = rows[reject_reasons(rows, rules) == ""].reset_index(drop=True)
        print(f"baseline {name}: {len(tables[name])} prompts of {sum(r.n for r in requests)} asked for", flush=True)
        model = teacher.writer.model if isinstance(teacher, LocalTeacher) else None
        costs[name] = cost_of(model, seconds, settings)
    return tables, costs


def written_by(teacher: Teacher, requests: list[Request], journal: Journal) -> pd.DataFrame:
    """What a language model writes, one row per prompt: task, intent, prompt."""
    written = zip(requests, teacher.write(requests, journal), strict=True)
    found = [(request.task, request.intent, prompt) for request, prompts in written for prompt in prompts]
    return pd.DataFrame(found, columns=["task", "intent", "prompt"])


def journal_of(run: RunFolder, name: str) -> Path:
    """Where a baseline's replies are kept."""
    return run / "04_analysis" / "baselines" / f"{re.sub('[^A-Za-z0-9.-]+', '_', name)}.jsonl"


def student_costs(
    student: Student, intents: dict[str, list[str]], n: int, settings: AnalysisSettings
) -> dict[str, Any]:
    """What the student costs, a set of n prompts for one intent at a time, every command open."""
    asked = [(i, Command(task)) for task, pool in intents.items() for i in pool[:TIMED]]
    return cost_of(student.model, timed(lambda pair: student.generate([pair[0]], pair[1], n=n), asked), settings)


def cost_of(model: Any, seconds: list[float], settings: AnalysisSettings) -> dict[str, Any]:
    """parameters, weights [MB] and seconds per set; None for what cannot be known, as of a model on a server."""
    tensors = [] if model is None else list(model.parameters())
    return {
        "parameters": sum(t.numel() for t in tensors) or None,
        "weights_mb": sum(t.numel() * t.element_size() for t in tensors) / 1e6 or None,
        "seconds_per_set": interval(seconds, settings) if seconds else None,
    }
