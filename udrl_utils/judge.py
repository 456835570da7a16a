"""The judge: a language model that grades how well a prompt serves its intent.

In go pairs and the servers that the settings name; out comes a score from 1 to 10 per pair. Nothing here knows how
scores become commands.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from udrl_utils.runs import RunFolder
from udrl_utils.settings import AnnotationSettings
from udrl_utils.tasks import TASKS, load_data
from udrl_utils.teachers import client_of
from udrl_utils.teachers.replies import Journal, first_turn
from udrl_utils.teachers.server import Budget, ChatClient, Question, options_of

SCORES = (1, 10)
SCHEMA = {
    "type": "object",
    "properties": {"score": {"type": "integer", "minimum": SCORES[0], "maximum": SCORES[1]}},
    "required": ["score"],
    "additionalProperties": False,
}
NUMBER = (  # not 80%, 1 to 10, 8,000 or 4/5
    r"(?<![\d.,])(\d+(?:\.\d+|,\d)?)(?![.,]?\d)(?!\s*(?:%|(?:to|-)\s*\d|(?:/|out of)\s*(?!10\b)\d))"
)
NAME = r"(?:score|rating|grade|result|overall|answer)"
OUT_OF = r"[*_`]*\s*(?:/|out of)\s*[*_`]*10\b"
FIELD = re.compile(rf"""["']{NAME}["']\s*:\s*(?:\{{\s*["']\w+["']\s*:\s*)?["']?{NUMBER}""", re.I)
GRADE = re.compile(  # **Rating:** 8, Score (1-10): 8, [RESULT] 8, I rate it an 8; 8/10, 8 out of 10; or nothing but 8
    rf"""\b{NAME}\b(?:\s*\([^()\n]*\))?["'*_`\s>|\]-]*(?:(?:is|of)\b|[:：=→])?["'*_`\s\[(|:-]*{NUMBER}|{NUMBER}{OUT_OF}"""
    rf"""|\b(?:rate|give)\s+(?:it|this|the\s+\w+|this\s+\w+)\s+(?:(?:an?|at|as)\s+)*{NUMBER}"""
    rf"""|\A["'*_`\s\[(]*{NUMBER}(?:\s*points?)?["'*_`\s.\])]*\Z""",
    re.I,
)


class Judge:
    """Scores pairs by the rubric of judge.yaml; votes are kept in the journal, so that each is paid for once.

    `request` holds further fields of each request.
    """

    def __init__(self, client: ChatClient, votes: int, journal: Journal, request: dict[str, Any] | None = None):
        self.client, self.votes, self.journal, self.request = client, votes, journal, request or {}

    def __call__(self, pairs: pd.DataFrame, embed: Any = None) -> Any:
        """Mean score of each pair, shape (len(pairs),); NaN where no vote could be read, and a line says how many.

        Raises: RunError when the server refuses to work or answers nothing, or when the budget is spent.
        """
        rows = zip(pairs.task, pairs.intent, pairs.prompt, strict=True)
        questions = [self._question(*row, vote) for row in rows for vote in range(self.votes)]
        replies = self.client.ask(questions, self.journal)
        votes = [read_score(reply or "") for reply in replies]
        unread = [reply for reply, vote in zip(replies, votes, strict=True) if np.isnan(vote)]
        if unread:
            example = next((f", such as {reply[:80]!r}" for reply in unread if reply), "")
            empty = f"{unread.count(None)} without a reply, {len(unread) - unread.count(None)} without a score"
            print(f"judge: {len(unread)} of {len(votes)} votes are left out: {empty}{example}", flush=True)
        return pd.DataFrame(np.reshape(votes, (len(pairs), self.votes))).mean(axis=1).to_numpy()

    def _question(self, task: str, intent: str, prompt: str, vote: int) -> Question:
        rubric = load_data("judge")["instruction"].format(definition=TASKS[task].definition)
        pair = json.dumps({"intent": intent, "prompt": prompt}, ensure_ascii=False)
        chat = [{"role": "system", "content": rubric}, {"role": "user", "content": pair}]
        sampling = {"temperature": 0.0 if self.votes == 1 else 1.0, "seed": vote, "max_tokens": 40}
        return Question(chat, options_of(sampling, self.request), SCHEMA)


def make_judge(settings: AnnotationSettings, run: RunFolder, stage: str) -> Judge:
    """The judge that the settings name, for a stage of a run.

    A stage keeps the votes that it pays for in its own folder; those of 02_annotated are read as well.
    """
    journal = Journal(run / stage / "_judge.jsonl")
    for file in votes_of_pairs(run):
        journal.replies = Journal(file).replies | journal.replies
    return judge_of(settings, journal, budget_of_judge(settings, run))


def judge_of(settings: AnnotationSettings, journal: Journal, budget: Budget) -> Judge:
    """The judge that the settings name; `budget` is that of its ChatClient."""
    return Judge(client_of(settings, "judge", budget), settings.judge_votes, journal, settings.judge_request)


def votes_of_pairs(run: RunFolder) -> list[Path]:
    """Journals of the votes on a run's pairs: that of the notebook, and those of workers, one per shard."""
    return [run / "02_annotated" / "_judge.jsonl", *sorted(run.path.glob("02_annotated/_judge/*.jsonl"))]


def budget_of_judge(settings: AnnotationSettings, run: RunFolder) -> int | None:
    """How many requests a run may still make to its judge, in all stages together; None for any number."""
    if not settings.judge_budget:
        return None
    files = {*votes_of_pairs(run), *run.path.glob("*/_judge.jsonl")}
    return settings.judge_budget - sum(Journal(file).usage["requests"] for file in files)


def read_score(reply: str) -> float:
    """The score of a reply, from 1 to 10; NaN where it holds none, or several that differ."""
    text = first_turn(reply)[:2000]
    found = FIELD.findall(text) or [next(filter(None, groups)) for groups in GRADE.findall(text)]
    scores = {float(number.replace(",", ".")) for number in found}
    score = scores.pop() if len(scores) == 1 else 0.0
    return score if SCORES[0] <= score <= SCORES[1] else float("nan")
