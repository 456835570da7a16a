"""Relevance and diversity of a student beside a language model's, on intents that neither has to do with.

    python benchmarks/outside.py partiprompts.tsv [--student ready] [--intents 200]

The file is a table with a column of intents (PartiPrompts: Prompt). The student is asked at its best command, the
language model as notebook 01 asks a teacher; both write 4 image prompts for each intent. Ratios are over intents, with
95% intervals.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from udrl_utils.baselines import baselines_of, written_by
from udrl_utils.encoder import Encoder
from udrl_utils.evaluation import ratio_interval, written
from udrl_utils.filters import reject_reasons
from udrl_utils.rewards import annotate
from udrl_utils.settings import AnalysisSettings, DistillationSettings
from udrl_utils.student import Student, find_student
from udrl_utils.tables import read_table
from udrl_utils.teachers.replies import Journal, Request

TASK, PROMPTS = "text_to_image", 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--column", default="Prompt")
    parser.add_argument("--student", default="ready")
    parser.add_argument("--intents", type=int, default=200, help="drawn from the file by seed 0")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of intents that are longer than any that was trained on
    analysis, pairs = AnalysisSettings(), DistillationSettings(prompts_per_intent=PROMPTS)
    found = read_table(str(options.file), [options.column])[options.column].drop_duplicates()
    intents = found.sample(min(options.intents, len(found)), random_state=0).tolist()
    folder, name, encoder = find_student(options.student)
    student, embed = Student.load(folder), Encoder(encoder)
    prompts = student.generate(intents, student.best_command(TASK), n=PROMPTS, seed=0)
    own = [(TASK, i, prompt) for i, texts in zip(intents, prompts, strict=True) for prompt in texts]
    rows = {name: pd.DataFrame(own, columns=["task", "intent", "prompt"])}
    with TemporaryDirectory() as kept:
        for llm, teacher in baselines_of(analysis, pairs).items():
            requests = [Request(TASK, intent, PROMPTS) for intent in intents]
            rows[llm] = written_by(teacher, requests, Journal(Path(kept) / "replies.jsonl"))
    tables = {}
    for system, table in rows.items():
        passed = table[reject_reasons(table, pairs) == ""].reset_index(drop=True)
        print(f"{system}: {len(passed)} of {PROMPTS * len(intents)} prompts pass the filters of notebook 01")
        measured = annotate(passed.assign(set=0), ["relevance", "diversity"], embed)
        tables[system] = measured.groupby("intent")[["relevance", "diversity"]].mean()
    ours = tables.pop(name)
    for llm, theirs in tables.items():
        for measure in ("relevance", "diversity"):
            both = pd.concat([ours[measure], theirs[measure]], axis=1, keys=["ours", "theirs"]).dropna()
            ratio = ratio_interval(both.ours.to_numpy(), both.theirs.to_numpy(), analysis)
            line = f"{both.ours.mean():.3f} of the student, {both.theirs.mean():.3f} of {llm}"
            print(f"{measure}, {len(both)} intents: {line}, ratio {written(ratio)}")


if __name__ == "__main__":
    main()
