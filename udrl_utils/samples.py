"""Samples: prompts that a student wrote under commands, scored with the rewards that they really achieved.

A table of samples has one row per prompt: task, intent, set, prompt, what was commanded (asked_<reward>) and what
was achieved (<reward>).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from udrl_utils.commands import Command
from udrl_utils.engine import Engine
from udrl_utils.rewards import annotate

if TYPE_CHECKING:
    from udrl_utils.encoder import Embed


class Sampler:
    """Lets one student write, and scores it. `sampling` goes to its `generate`: seed, temperature, ..."""

    def __init__(self, student: Engine, rewards: list[str], embed: Embed, **sampling: Any):
        self.student, self.rewards, self.embed, self.sampling = student, rewards, embed, sampling

    def of(self, student: Engine, **sampling: Any) -> Sampler:
        """The same for another student, or with other sampling."""
        return Sampler(student, self.rewards, self.embed, **{**self.sampling, **sampling})

    def sample(self, requests: list[tuple[str, Command]], n: int, **columns: Any) -> pd.DataFrame:
        """Scored samples, n per (intent, command); each request is a set of its own."""
        intents, commands = [intent for intent, _ in requests], [command for _, command in requests]
        written = self.student.generate(intents, commands, n=n, **self.sampling)
        rows = [
            {"task": c.task, "intent": i, "set": k, "prompt": p, **{f"asked_{name}": v for name, v in c.asked.items()}}
            for k, (i, c, prompts) in enumerate(zip(intents, commands, written, strict=True))
            for p in prompts
        ]
        return annotate(pd.DataFrame(rows).assign(**columns), self.rewards, self.embed)
