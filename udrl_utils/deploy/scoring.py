"""Achieved rewards beside a server: a second process embeds prompts with PyTorch, so that the server need not load it.

In go an intent and its prompts; out come the rewards that they achieved, as they are commanded: length in words, others
as quantile levels of the train split.
"""

from __future__ import annotations

import asyncio
from functools import cache
from pathlib import Path
from typing import Any

from udrl_utils.commands import CommandCodec
from udrl_utils.encoder import Encoder
from udrl_utils.machine import pool, quietly


class Scorer:
    """Scores prompts for an exported student. The process starts with the first request and ends with this one."""

    def __init__(self, folder: Path, encoder: str):
        self.folder, self.encoder, self._process = folder, encoder, pool(1, quietly, 1)

    async def achieved(self, task: str, intent: str, prompts: list[str]) -> list[dict[str, Any]]:
        """Rewards of each prompt by name; None where a reward has no value, and for rewards that a user made."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._process, score, self.folder, self.encoder, task, intent, prompts)


_codec, _encoder = cache(CommandCodec.load), cache(Encoder)


def score(folder: Path, encoder: str, task: str, intent: str, prompts: list[str]) -> list[dict[str, Any]]:
    """Rewards that the prompts of one intent achieved, computed in this process."""
    import pandas as pd  # this and rewards: 120 MB, in the second process only

    from udrl_utils.rewards import BUILT_IN, REWARDS, annotate

    codec, embed = _codec(folder), _encoder(encoder)
    names = [name for name in codec.rewards_of(task) if name in BUILT_IN and name in REWARDS]
    rows = pd.DataFrame({"task": task, "intent": intent, "prompt": prompts})
    annotated = annotate(rows, list({"length", *names}), embed)
    embed.forget()
    missing = {name: float("nan") for name in codec.levels if name not in annotated}
    levels = codec.achieved_levels(annotated.assign(**missing)).filter(codec.rewards_of(task))
    return [
        {"length": int(words), **{name: None if value != value else round(value, 3) for name, value in values.items()}}
        for words, values in zip(annotated.length, levels.to_dict("records"), strict=True)
    ]
