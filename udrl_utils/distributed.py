"""Notebook 03 in several processes: `accelerate launch -m udrl_utils.distributed --run outputs/<run>`.

In goes a run whose notebook 03 was begun, for its settings are read from run.json; out comes its student.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from udrl_utils.rewards import read_annotated
from udrl_utils.rounds import find_best_commands, run_sampler, train_rounds
from udrl_utils.runs import RunFolder
from udrl_utils.settings import TrainingSettings
from udrl_utils.student import Student
from udrl_utils.training import train_student


def main() -> None:
    """Train the student of a run, and take it through its rounds."""
    from accelerate import PartialState

    parser = argparse.ArgumentParser(description="train the student of a run whose pairs are annotated")
    parser.add_argument("--run", type=Path, required=True, help="run folder, such as outputs/laptop")
    parser.add_argument("--plain", action="store_true", help="train the baseline without commands")
    arguments = parser.parse_args()
    run = RunFolder(arguments.run)
    if PartialState().is_main_process:
        run.lock()
    settings = run.settings(TrainingSettings)
    train_student(settings, run, commanded=not arguments.plain)
    if not arguments.plain:
        train_rounds(settings, run)
        if PartialState().is_main_process:
            sampler = run_sampler(settings, run, Student.load(run / "03_student"))
            find_best_commands(run, sampler, read_annotated(run, "validation"))


if __name__ == "__main__":
    main()
