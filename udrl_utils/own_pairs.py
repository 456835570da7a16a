"""Pairs of one's own in place of a teacher: read, checked before any work, and what becomes of them told.

In goes a table with the columns task, intent and prompt; out come the requests that a teacher would have had, each with
its prompts. Nothing here knows which of them are kept.
"""

from __future__ import annotations

from collections import Counter
from statistics import median

import pandas as pd

from udrl_utils.errors import SettingsError
from udrl_utils.settings import MOST_WORDS, DistillationSettings
from udrl_utils.tables import read_table
from udrl_utils.tasks import TASKS
from udrl_utils.teachers.replies import Request
from udrl_utils.text import clean_intent, count_words, words

SWAPPED = (20, 3)  # a median intent of more words, and more times the words of a prompt, suggests swapped columns


def given_pairs(settings: DistillationSettings) -> dict[Request, list[str]]:
    """An existing data set of pairs, grouped by the requests that a teacher would have had.

    Any white space in a prompt becomes one space.

    Raises: SettingsError when a task is unknown, no pair is left, the columns intent and prompt look swapped, or no
    prompt has an allowed length.
    """
    source = f"parameter pairs={settings.pairs!r}"
    table = read_table(settings.pairs, ["task", "intent", "prompt"])
    unknown = set(table.task) - set(TASKS)
    if unknown:
        raise SettingsError(f"{source}: unknown task {sorted(unknown)[0]!r}; allowed are {', '.join(TASKS)}")
    table = table.assign(intent=table.intent.map(clean_intent), prompt=table.prompt.map(lambda p: " ".join(p.split())))
    asked, intended = table.task.isin(settings.tasks), table.intent.map(words).astype(bool)
    without = {"of other tasks": (~asked).sum(), "without an intent": (asked & ~intended).sum()}
    if any(without.values()):
        print(f"{source}: left out {', '.join(f'{n:,} pairs {why}' for why, n in without.items() if n)}", flush=True)
    table = table.drop(table.index[~(asked & intended)])
    if table.empty:
        raise SettingsError(f"{source} holds no pair of the tasks {', '.join(settings.tasks)} that has an intent")
    check_words(table, settings)
    groups = table.groupby(["task", "intent"], sort=False).prompt.apply(list)
    return {Request(task, intent, len(prompts)): prompts for (task, intent), prompts in groups.items()}


def check_words(table: pd.DataFrame, settings: DistillationSettings) -> None:
    """Raises: SettingsError when the columns intent and prompt look swapped or no prompt has an allowed length."""
    source = f"parameter pairs={settings.pairs!r}"
    sizes = {name: list(map(count_words, table[name])) for name in ("intent", "prompt")}
    intent, prompt = (median(sizes[name]) for name in ("intent", "prompt"))
    most, times = SWAPPED
    if intent > max(most, times * prompt):
        raise SettingsError(
            f"{source}: intents have {intent:.0f} words in the median and prompts {prompt:.0f}: are the columns intent "
            f"and prompt swapped? Allowed is a median of {most} words, or of {times} times those of prompts"
        )
    if not any(settings.min_words <= size <= settings.max_words for size in sizes["prompt"]):
        raise SettingsError(
            f"{source}: no prompt has min_words={settings.min_words} to max_words={settings.max_words} words; they "
            f"have {prompt:.0f} in the median, and max_words may be up to {MOST_WORDS}"
        )


def check_splits(given: dict[Request, list[str]], splits: dict[str, str], settings: DistillationSettings) -> None:
    """Raises: SettingsError when a task of given pairs has no train intent, or the other splits are empty."""
    trained = {request.task for request in given if splits[request.intent] == "train"}
    for task in dict.fromkeys(request.task for request in given):
        if task not in trained:
            raise SettingsError(
                f"parameter pairs={settings.pairs!r}: no intent of {task} is in the train split; "
                f"give more pairs of {task}, or leave it out of tasks"
            )
    for split in ("validation", "test"):
        if given and split not in splits.values():
            name = f"{split}_fraction"
            raise SettingsError(
                f"parameter {name}={getattr(settings, name)}: none of the {len(splits)} intents of "
                f"pairs={settings.pairs!r} is held out; more pairs or a {name} below 0.5 are needed"
            )


def dropped_line(counts: dict[str, int], given: dict[Request, list[str]], settings: DistillationSettings) -> str:
    """One line: how many of the given prompts were dropped, the share of each reason, and settings that keep them."""
    lengths = [count_words(prompt) for prompts in given.values() for prompt in prompts if prompt]
    longest, shortest = min(max(lengths), MOST_WORDS), min(lengths)
    reasons = {k: n for k, n in Counter(counts).most_common() if n and k not in ("asked", "kept")}
    line, asked = f"{sum(reasons.values()):,} of {counts['asked']:,} prompts dropped", counts["asked"]
    if not reasons:
        return line
    rest = sum(n > MOST_WORDS for n in lengths)
    kept = f"all but {rest:,}" if rest else "them"
    keeps = {
        "too_long": f"max_words={longest} keeps {kept}" if longest > settings.max_words else f"{longest} is the most",
        "too_short": f"min_words={shortest} keeps the short ones",
        "near_duplicate": "near_duplicate=1 keeps all that differ",
    }
    shares = (f"{reason} {n / asked:.1%}" if n / asked >= 0.001 else f"{reason} <0.1%" for reason, n in reasons.items())
    often = (reason for reason, n in reasons.items() if n / asked >= 0.01)  # rare ones need no other setting
    return "; ".join([f"{line}: {', '.join(shares)}", *(keeps[reason] for reason in often if reason in keeps)])
