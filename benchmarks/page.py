"""A page with a student inside: its size, its speed in Chromium as it says itself, and what its 8 bits change.

    python benchmarks/page.py [--student ready]

The student with rounded weights and the same student in float32 write by their most probable tokens, for the test
intents of the ready student under each task's best command.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "browser"))

import lab

from udrl_utils.deploy.page import round_weights, student_page
from udrl_utils.student import Student, ready_facts


def rates(page: str, intents: list[str]) -> list[int]:
    """Tokens a second that a page says after it has written four prompts for an intent."""
    with tempfile.TemporaryDirectory() as folder, lab.browser() as chromium:
        if chromium is None:
            sys.exit("no Chromium is installed")
        file = Path(folder) / "student.html"
        file.write_text(page, encoding="utf-8")
        shown, said = chromium.new_page(), []
        shown.goto(file.as_uri())
        for intent in intents:
            shown.locator("#intent").fill(intent)
            shown.locator("#intent").press("Enter")
            status = shown.locator("#status", has_text="tokens a second")
            said.append(int(re.match(r"\d+", status.inner_text(timeout=120_000))[0]))
            shown.evaluate("document.getElementById('status').textContent = ''")
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", default="ready")
    name = parser.parse_args().student
    student, rounded = Student.load(name), Student.load(name)
    asked = [(task, intent) for task, intents in ready_facts()["intents"].items() for intent in intents]
    page = student_page(student, name)
    said = rates(page, [intent for _, intent in asked[:20]])
    print(f"{len(page.encode()) / 1e6:.1f} MB; in Chromium {np.median(said):.0f} tokens/s [{min(said)}, {max(said)}]")
    round_weights(rounded)
    same = places = whole = 0
    for task, intent in asked:
        prefix = student.prefix(intent, student.best_command(task))
        ids = student.tokenizer(prefix, return_tensors="pt", add_special_tokens=False).input_ids
        how = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 64}
        written = student.model.generate(ids, **how)
        with torch.inference_mode():
            likeliest = (
                rounded.model(written, attention_mask=torch.ones_like(written))
                .logits[0, ids.shape[1] - 1 : -1]
                .argmax(-1)
            )
        agree = (likeliest == written[0, ids.shape[1] :]).tolist()
        same, places, whole = same + sum(agree), places + len(agree), whole + all(agree)
    print(f"the most probable token is the same at {same / places:.1%} of {places} places")
    print(f"{whole} of {len(asked)} prompts are the same from the first token to the last")


if __name__ == "__main__":
    main()
