"""What 8 bits change: the student of a page, with its rounded weights, beside the same student in float32.

    python benchmarks/page.py [--student ready]

Both write by their most probable tokens, for the test intents of the ready student under each task's best command.
"""

from __future__ import annotations

import argparse

import torch

from udrl_utils.deploy.page import round_weights
from udrl_utils.student import Student, ready_facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", default="ready")
    name = parser.parse_args().student
    student, rounded = Student.load(name), Student.load(name)
    round_weights(rounded)
    same = places = whole = 0
    asked = [(task, intent) for task, intents in ready_facts()["intents"].items() for intent in intents]
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
