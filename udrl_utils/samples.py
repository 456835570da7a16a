"""Samples: prompts that a student wrote under commands, scored with the rewards that they really achieved.

A table of samples has one row per prompt: task, intent, set, prompt, what was commanded (asked_<reward>) and what
was achieved (<reward>).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas

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

    def sample(self, requests: list[tuple[str, Command]], n: int, **columns: Any) -> pandas.DataFrame:
        """Scored samples, n per (intent, command); each request is a set of its own."""
        intents, commands = [intent for intent, _ in requests], [command for _, command in requests]
        written = self.student.generate(intents, commands, n=n, **self.sampling)
        rows = [
            {"task": c.task, "intent": i, "set": k, "prompt": p, **{f"asked_{name}": v for name, v in asked(c).items()}}
            for k, (i, c, prompts) in enumerate(zip(intents, commands, written, strict=True))
            for p in prompts
        ]
        return annotate(pandas.DataFrame(rows).assign(**columns), self.rewards, self.embed)

    def best_of(self, requests: list[tuple[str, Command]], n: int, tries: int) -> pandas.DataFrame:
        """Of `tries` samples per request, the n that come nearest to their command; costs tries / n as much writing.

        Nearness is the mean distance in quantile levels, for length in shares of the longest. What is kept is scored
        again: diversity depends on what else is in the set.
        """
        written, codec = self.sample(requests, tries), self.student.codec
        wanted = written.reindex(columns=[f"asked_{name}" for name in codec.levels])
        apart = (codec.achieved_levels(written) - wanted.to_numpy()).abs()
        if "asked_length" in written:
            apart["length"] = (written.length - written.asked_length).abs() / codec.longest
        order = written.assign(apart=apart.mean(axis=1)).sort_values(["set", "apart"], kind="stable")
        kept = order.groupby("set").head(n).sort_index().drop(columns=["apart", *self.rewards])
        return annotate(kept.reset_index(drop=True), self.rewards, self.embed)


def asked(command: Command) -> dict[str, float]:
    """What a command asks for, by reward."""
    return {**({"length": command.length} if command.length else {}), **command.levels}
