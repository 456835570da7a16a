"""The LLM judge: a reward from 1 to 10 that a language model gives, the mean of several votes, paid for once."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from udrl_utils.chat import Budget, ChatClient, Question
from udrl_utils.journal import Journal
from udrl_utils.tasks import TASKS, load_data

if TYPE_CHECKING:
    import pandas

SCORES = (1, 10)
SCHEMA = {
    "type": "object",
    "properties": {"score": {"type": "integer", "minimum": SCORES[0], "maximum": SCORES[1]}},
    "required": ["score"],
    "additionalProperties": False,
}
GRADE = re.compile(r'"?score"?\s*[:=]\s*(\d+(?:\.\d+)?)|^\W*(\d+(?:\.\d+)?)(?:\s*/\s*10)?\W*$', re.I)


class Judge:
    """Scores pairs by the rubric of judge.yaml; a pair is asked for once, its votes are kept in the journal."""

    def __init__(self, client: ChatClient, votes: int, journal: Journal):
        self.client, self.votes, self.journal = client, votes, journal

    def __call__(self, pairs: pandas.DataFrame, embed: Any = None) -> Any:
        """Mean score of each pair, shape (len(pairs),); NaN where no vote could be read.

        Raises: RunError when the server refuses to work.
        """
        import numpy as np

        rows = pairs[["task", "intent", "prompt"]].itertuples(index=False)
        questions = [self._question(*row, vote) for row in rows for vote in range(self.votes)]
        votes = [read_score(reply or "") for reply in self.client.ask(questions, self.journal, Budget(None))]
        table = np.array(votes, dtype=float).reshape(len(pairs), self.votes)
        given = np.isfinite(table)
        total = np.where(given, table, 0).sum(1)
        return np.where(given.any(1), total / np.maximum(given.sum(1), 1), np.nan)

    def _question(self, task: str, intent: str, prompt: str, vote: int) -> Question:
        rubric = load_data("judge")["instruction"].format(definition=TASKS[task].definition)
        pair = json.dumps({"intent": intent, "prompt": prompt}, ensure_ascii=False)
        chat = [{"role": "system", "content": rubric}, {"role": "user", "content": pair}]
        sampling = {"temperature": 0.0 if self.votes == 1 else 1.0, "seed": vote, "max_tokens": 40}
        return Question(chat, sampling, SCHEMA)


def read_score(reply: str) -> float:
    """The score of a reply: of its JSON, or a number that stands alone; NaN where there is none from 1 to 10."""
    found = GRADE.search(reply[:2000].strip())
    score = float(found[1] or found[2]) if found else 0.0
    return score if SCORES[0] <= score <= SCORES[1] else float("nan")
