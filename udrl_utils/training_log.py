"""What is seen of a training while it runs: losses, and samples under a few commands.

The entries of a trainer's log go in; a loss table, samples and a line now and then come out. It changes nothing of
the training.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from udrl_utils.commands import Command
from udrl_utils.runs import write_json
from udrl_utils.student import Student

Live = Callable[[pd.DataFrame], None]  # is shown the loss table now and then


class TrainingLog:
    """Takes the entries of a trainer's log, and samples for an intent of each task in `held`.

    `live`, if given, is called with the loss table every ten seconds.
    """

    COMMANDS = ({"length": 6}, {"length": 24}, {"relevance": 0.95}, {"diversity": 0.95})

    def __init__(self, variant: str, held: pd.DataFrame, live: Live | None = None):
        self.variant, self.live = variant, live
        few = held.drop_duplicates("task")[["task", "intent"]]
        self.intents = list(few.itertuples(index=False, name=None))
        self.entries: list[dict[str, Any]] = []
        self.samples: list[dict[str, Any]] = []
        self._started = self._shown = time.monotonic()

    def __call__(self, entry: dict[str, Any], student: Student) -> None:
        """Take one entry of the trainer's log: step, steps, and loss or eval_loss."""
        self.entries.append({"variant": self.variant, **entry})
        if "eval_loss" in entry:
            print(f"step {entry['step']:6} of {entry['steps']}  validation loss {entry['eval_loss']:.3f}", flush=True)
            if self.intents:
                self._sample(entry["step"], student)
        elif "loss" in entry and time.monotonic() - self._shown >= 10:
            self._shown = time.monotonic()
            rate = entry["step"] / (self._shown - self._started)
            left = f"{rate:.1f} steps/s, {(entry['steps'] - entry['step']) / rate / 60:.1f} min left"
            print(f"step {entry['step']:6} of {entry['steps']}  loss {entry['loss']:.3f}  {left}", flush=True)
            if self.live:
                self.live(self.table())

    def _sample(self, step: int, student: Student) -> None:
        requests = [
            (intent, Command(task, **asked))
            for task, intent in self.intents
            for asked in self.COMMANDS
            if set(asked) <= set(student.codec.rewards_of(task))
        ]
        written = student.generate([intent for intent, _ in requests], [command for _, command in requests])
        for (intent, command), (prompt,) in zip(requests, written, strict=True):
            self.samples.append({"step": step, "intent": intent, "command": repr(command), "prompt": prompt})

    def save(self, file: Path) -> None:
        """Keep what was seen."""
        write_json(file, {"variant": self.variant, "entries": self.entries, "samples": self.samples})

    @classmethod
    def load(cls, file: Path) -> TrainingLog:
        """What was seen of an earlier training."""
        kept = json.loads(file.read_text())
        log = cls(kept["variant"], pd.DataFrame(columns=["task", "intent"]))
        log.entries, log.samples = kept["entries"], kept["samples"]
        return log

    def table(self) -> pd.DataFrame:
        """Loss entries: variant, step, loss, eval_loss."""
        return pd.DataFrame(self.entries)


def callback(log: TrainingLog, student: Student) -> Any:
    """A trainer callback that hands each log entry to the training log."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any) -> None:
            if state.is_world_process_zero:
                log({"step": state.global_step, "steps": state.max_steps, **(logs or {})}, student)

    return Watch()
