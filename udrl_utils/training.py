"""Training: a run's annotated pairs become a student, and the commands that serve it best are found.

`python -m udrl_utils.training --run outputs/<run>` trains as the notebook does, under `accelerate launch` too.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udrl_utils.commands import Command, CommandCodec
from udrl_utils.dataset import command_pairs
from udrl_utils.machine import seed_everything
from udrl_utils.rewards import Encoder, read_annotated
from udrl_utils.samples import Sampler
from udrl_utils.settings import AnnotationSettings, RunFolder, TrainingSettings
from udrl_utils.student import Student, new_student, pretrained_student, train_tokenizer
from udrl_utils.trainer import make_trainer

if TYPE_CHECKING:
    import pandas


class TrainingLog:
    """What is seen of a training: loss entries, samples under commands, and a printed line now and then.

    `live`, if given, is called with the loss table at most every ten seconds.
    """

    COMMANDS = ({"length": 6}, {"length": 24}, {"relevance": 0.95}, {"diversity": 0.95})

    def __init__(
        self, variant: str, intents: list[tuple[str, str]], live: Callable[[pandas.DataFrame], None] | None = None
    ):
        self.variant, self.intents, self.live = variant, intents, live
        self.entries: list[dict[str, Any]] = []
        self.samples: list[dict[str, Any]] = []
        self._started = self._shown = time.monotonic()

    def __call__(self, entry: dict[str, Any], student: Student) -> None:
        """Take one entry of the trainer's log: step, steps, and loss or eval_loss."""
        self.entries.append({"variant": self.variant, **entry})
        if "eval_loss" in entry:
            print(f"step {entry['step']:6} of {entry['steps']}  validation loss {entry['eval_loss']:.3f}", flush=True)
            self._sample(entry["step"], student)
        elif "loss" in entry and time.monotonic() - self._shown >= 10:
            self._shown = time.monotonic()
            left = (self._shown - self._started) * (entry["steps"] / entry["step"] - 1)
            print(
                f"step {entry['step']:6} of {entry['steps']}  loss {entry['loss']:.3f}  {left / 60:.1f} min left",
                flush=True,
            )
            if self.live:
                self.live(self.table())

    def _sample(self, step: int, student: Student) -> None:
        known = [asked for asked in self.COMMANDS if set(asked) <= set(student.codec.rewards)]
        requests = [(intent, Command(task, **asked)) for task, intent in self.intents for asked in known]
        written = student.generate([intent for intent, _ in requests], [command for _, command in requests])
        for (intent, command), (prompt,) in zip(requests, written, strict=True):
            self.samples.append({"step": step, "intent": intent, "command": repr(command), "prompt": prompt})

    def table(self) -> pandas.DataFrame:
        """Loss entries: variant, step, loss, eval_loss."""
        import pandas

        return pandas.DataFrame(self.entries)


def callback(log: TrainingLog, student: Student) -> Any:
    """A trainer callback that hands each log entry to the training log."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any) -> None:
            if state.is_world_process_zero:
                log({"step": state.global_step, "steps": state.max_steps, **(logs or {})}, student)

    return Watch()


def fit_codec(settings: TrainingSettings, run: RunFolder) -> CommandCodec:
    """The codec of a run, fitted on its train split."""
    return CommandCodec.fit(read_annotated(run, "train"), run.settings(AnnotationSettings).rewards, settings.bins)


def train_student(
    settings: TrainingSettings,
    run: RunFolder,
    commanded: bool = True,
    live: Callable[[pandas.DataFrame], None] | None = None,
) -> TrainingLog:
    """Train on the run's annotated pairs and save a Hugging Face folder; resumes from the last checkpoint exactly.

    commanded=False trains the plain baseline: the same pairs, steps and shape, and no reward in any prefix. It goes
    to 03_student/sft_plain. The folder of a student is only replaced once its successor is complete.
    """
    from transformers import PrinterCallback

    seed_everything(settings.seed)
    codec = fit_codec(settings, run)
    data = {
        split: command_pairs(read_annotated(run, split), codec, settings, commanded)
        for split in ("train", "validation")
    }
    if settings.base:
        model, tokenizer = pretrained_student(settings.base, codec, settings.n_positions)
    else:
        train = read_annotated(run, "train")
        texts = [*train.intent, *train.prompt]
        tokenizer = train_tokenizer(texts, settings.vocab_size, codec.tokens())
        model = new_student(settings, tokenizer)
    folder = run / "03_student" if commanded else run / "03_student" / "sft_plain"
    work = folder / "checkpoints"
    trainer = make_trainer(model, tokenizer, settings, work, data["train"], data["validation"])
    few = read_annotated(run, "validation").drop_duplicates("task")
    log = TrainingLog(
        "student" if commanded else "sft_plain", list(few[["task", "intent"]].itertuples(index=False, name=None)), live
    )
    trainer.remove_callback(PrinterCallback)  # the training log prints instead
    trainer.add_callback(callback(log, Student(trainer.model, tokenizer, codec)))
    trainer.train(resume_from_checkpoint=last_checkpoint(work, settings))
    write_student(trainer.model, tokenizer, codec, folder)
    shutil.rmtree(work)
    return log


def last_checkpoint(work: Path, settings: TrainingSettings) -> str | None:
    """The newest checkpoint made with the same settings; checkpoints of other settings are removed."""
    from transformers.trainer_utils import get_last_checkpoint

    note = work / "settings.json"
    if note.exists() and note.read_text() != settings.model_dump_json():
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    note.write_text(settings.model_dump_json())
    return get_last_checkpoint(str(work))


def write_student(model: Any, tokenizer: Any, codec: CommandCodec, folder: Path) -> None:
    """Save beside, then move file by file, commands.json last: an interrupted save leaves the old student."""
    new = folder / ".saving"
    model.save_pretrained(new)
    tokenizer.save_pretrained(new)
    codec.save(new)
    (new / "README.md").write_text(model_card(model, codec))
    for file in sorted(new.iterdir(), key=lambda file: file.name == "commands.json"):
        file.replace(folder / file.name)
    new.rmdir()


def model_card(model: Any, codec: CommandCodec) -> str:
    """What somebody who finds the student's folder must know to use it."""
    best = "\n".join(f"- {task}: `{codec.best_command(task)!r}`" for task in codec.edges)
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---
# Prompt-writing student

{model.num_parameters() / 1e6:.1f}M parameters, trained by upside-down reinforcement learning on prompts of a teacher.
It reads command tokens and an intent, and writes a prompt. Commands: {", ".join(codec.rewards)}; lengths up to
{codec.longest} words, other rewards as quantile levels of the train split in {codec.bins} bins (`commands.json`).

    from udrl_utils.commands import Command
    from udrl_utils.student import Student
    Student.load("this folder").generate(["koi pond"], Command("{next(iter(codec.edges))}", length=18))

Commands that served best on validation intents:

{best}
"""


GRID = {"relevance": (None, 0.55, 0.75), "diversity": (None, 0.65, 0.75, 0.85, 0.95)}


def find_best_commands(run: RunFolder, settings: TrainingSettings, intents: int = 12, n: int = 4) -> pandas.DataFrame:
    """Ask for a grid of relevance and diversity levels on validation intents, and keep the best command of each task.

    What a prompt achieved in its teacher's set says little of what a whole set under one command achieves; so it is
    measured. Columns relevance and diversity of the table are ratios to the teacher's means on the same intents;
    the best command is the one whose smaller ratio is highest. It is written into the student's commands.json.
    """
    import pandas

    folder, held = run / "03_student", read_annotated(run, "validation")
    student = Student.load(folder)
    names = [name for name in GRID if name in student.codec.rewards]
    if not names:
        return pandas.DataFrame()
    levels = [dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*map(GRID.get, names))]
    held = held.groupby("task").apply(lambda rows: rows[rows.intent.isin(rows.intent.unique()[:intents])])
    held = held.reset_index("task").reset_index(drop=True)
    keys = list(held[["task", "intent"]].drop_duplicates().itertuples(index=False, name=None))
    requests = [(intent, Command(task, **asked)) for asked in levels for task, intent in keys]
    embed = Encoder(run.settings(AnnotationSettings).encoder)
    scored = Sampler(student, names, embed, seed=settings.seed).sample(requests, n)
    scored["command"] = scored.set.map(lambda number: requests[number][1])
    measured = scored.groupby(["task", "command"])[names].mean() / held.groupby("task")[names].mean()
    measured["smaller"] = measured.min(axis=1)
    measured = measured.reset_index().sort_values(["task", "smaller"], ascending=[True, False])
    best = {row.task: row.command.levels for row in measured.drop_duplicates("task").itertuples()}
    codec = replace(student.codec, best=best)
    codec.save(folder)
    (folder / "README.md").write_text(model_card(student.model, codec))
    return measured.reset_index(drop=True)


def main() -> None:
    """Entry point of `python -m udrl_utils.training`."""
    parser = argparse.ArgumentParser(description="train the student of a run whose pairs are annotated")
    parser.add_argument("--run", type=Path, required=True, help="run folder, such as outputs/laptop")
    parser.add_argument("--plain", action="store_true", help="train the baseline without commands")
    arguments = parser.parse_args()
    run = RunFolder(arguments.run)
    settings = run.settings(TrainingSettings)
    train_student(settings, run, commanded=not arguments.plain)
    if not arguments.plain:
        find_best_commands(run, settings)


if __name__ == "__main__":
    main()
