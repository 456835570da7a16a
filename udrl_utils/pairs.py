"""Distillation: ask the teacher shard by shard, parse and filter its replies, drop repetitions, write pairs."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas

from udrl_utils.runs import RunFolder, is_sound, read_note, read_shards, write_json, write_shard
from udrl_utils.settings import MOST_WORDS, DistillationSettings, RunError, SettingsError
from udrl_utils.tasks import (
    TASKS,
    assign_splits,
    clean_intent,
    distinct,
    load_intents,
    ontology_intents,
    read_table,
    words,
)
from udrl_utils.teachers import Teacher, make_teacher
from udrl_utils.teachers.recorded import recorded_requests
from udrl_utils.teachers.replies import Journal, Request, borrows
from udrl_utils.teachers.server import Budget

if TYPE_CHECKING:
    import pyarrow

COLUMNS = ("pair_id", "split", "task", "modality", "intent", "prompt", "teacher")
REFUSAL = re.compile(r"^(?:i(?:'m| am) sorry|sorry,|i can(?:no|')t|i am unable|as an ai|i won't)\b", re.I)
CHATTER = re.compile(r"^(?:sure|certainly|of course|okay|here (?:are|is)|i hope|let me know)\b", re.I)
MARKUP = re.compile(r"</?[a-z!][^<>]*>|<\||```|\]\(|^#+ |\*\*|[{}]|\[\"|\",|\w://", re.I)
LONGEST_WORD = 60  # characters
SWAPPED = (20, 3)  # intents of more words, and of so many times those of prompts, in the median, look like prompts


def ask_teacher(run: RunFolder, requests: Sequence[Request], replies: Path) -> list[list[str]]:
    """What the teacher of a finished run writes for more requests, unfiltered; its replies are kept in a journal.

    Raises: RunError when the requests of all notebooks together would exceed teacher_budget.
    """
    return extra_teacher(run).write(requests, Journal(replies))


def extra_teacher(run: RunFolder) -> Teacher:
    """The teacher of a finished run, for later notebooks, with what is left of its teacher_budget."""
    settings = run.settings(DistillationSettings)
    return make_teacher(settings, budget_of(run, settings))


def reject_reason(
    intent: str,
    prompt: str,
    settings: DistillationSettings,
    held_out: frozenset[str] = frozenset(),
) -> str | None:
    """Why a prompt is not kept, or None."""
    split, length = prompt.split(), len(prompt.split())
    found = (
        ("empty", not split),
        ("control_characters", not prompt.isprintable()),
        ("refusal", REFUSAL.match(prompt)),
        ("chatter", CHATTER.match(prompt) or prompt.endswith(":")),
        ("markup", MARKUP.search(prompt)),
        ("long_word", max(map(len, split), default=0) > LONGEST_WORD),
        ("same_as_intent", clean_intent(prompt) == clean_intent(intent)),
        ("too_short", length < settings.min_words),
        ("too_long", length > settings.max_words),
        ("other_script", latin(prompt) < 0.5 < latin(intent)),
        ("held_out_word", not held_out.isdisjoint(words(prompt))),
    )
    return next((reason for reason, is_so in found if is_so), None)


def latin(text: str) -> float:
    """Share of a text's letters that are Latin; 1 where it has no letters."""
    letters = [letter for letter in text if letter.isalpha()]
    return (
        sum(letter < "\u0250" or "\u1e00" <= letter < "\u1f00" for letter in letters) / len(letters) if letters else 1.0
    )


def drop_near_duplicates(prompts: list[str], threshold: float) -> list[int]:
    """Indices of prompts that do not repeat an earlier one, by the Jaccard similarity of word 3-grams (MinHash)."""
    from datasketch import MinHash

    kept: list[int] = []
    hashes: list[Any] = []
    for index, prompt in enumerate(prompts):
        tokens = words(prompt)
        grams = {" ".join(tokens[i : i + 3]) for i in range(max(1, len(tokens) - 2))}
        sketch = MinHash(num_perm=64, seed=1)
        sketch.update_batch([gram.encode() for gram in sorted(grams)])
        if all(sketch.jaccard(other) < threshold for other in hashes):
            kept.append(index)
            hashes.append(sketch)
    return kept


def plan(settings: DistillationSettings) -> list[Request]:
    """What the teacher is asked: a request per intent, tasks taking turns.

    Intents of the ontology are drawn for their task; a recorded teacher has its own. Raises: SettingsError where the
    intents cannot be read, or were not recorded.
    """
    tasks, n = settings.tasks, settings.prompts_per_intent
    if settings.teacher == "recorded":
        return recorded_requests(settings)
    if settings.intents != "ontology":
        return [Request(tasks[k % len(tasks)], intent, n) for k, intent in enumerate(load_intents(settings))]
    if not settings.n_intents:
        raise SettingsError("parameter n_intents=0 must be at least 1 with intents='ontology', which has no end")
    drawn = itertools.cycle([(task, ontology_intents(settings.seed, task)) for task in tasks])
    asked = distinct(Request(task, next(intents), n) for task, intents in drawn)
    return list(itertools.islice(asked, settings.n_intents))


def pair_id(*parts: str) -> str:
    """Id of a pair: a hash of what makes it."""
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=6).hexdigest()


def pair_rows(
    request: Request,
    split: str,
    prompts: list[str],
    teacher: str,
    settings: DistillationSettings,
    held_out: frozenset[str],
) -> tuple[list[dict[str, str]], Counter]:
    """Rows of one request's prompts that are kept, and the counts of why others are not."""
    counts, fine = Counter({"asked": request.n, "missing": max(0, request.n - len(prompts))}), []
    unwanted = frozenset() if split == "test" else held_out
    shown = settings.teacher_form == "single" and not settings.pairs  # examples, which some models repeat
    for prompt in (" ".join(prompt.split(" ")) for prompt in prompts):
        reason = reject_reason(request.intent, prompt, settings, unwanted)
        if not reason and shown and borrows(request, prompt):
            reason = "from_example"
        if reason:
            counts[reason] += 1
        else:
            fine.append(prompt)
    kept = [fine[i] for i in drop_near_duplicates(fine, settings.near_duplicate)]
    counts.update({"near_duplicate": len(fine) - len(kept), "kept": len(kept)})
    task, intent = request.task, request.intent
    keys = [pair_id(task, intent, prompt) for prompt in kept]
    values = [(key, split, task, TASKS[task].modality, intent, p, teacher) for key, p in zip(keys, kept, strict=True)]
    return [dict(zip(COLUMNS, row, strict=True)) for row in values], counts


def distil(settings: DistillationSettings, run: RunFolder) -> tuple[dict[str, int], dict[str, int]]:
    """Make every missing shard of 01_pairs.

    Returns the counts of the whole run: prompts by what became of them, `kept` included; and what the teacher has
    used: requests, tokens_in, tokens_out, failures by name, and questions without a reply after all tries.
    Raises: RunError when the folder holds pairs made with other settings, or nothing is left after filtering.
    """
    folder = run / "01_pairs"
    same_settings(folder, settings)
    given = given_pairs(settings) if settings.pairs else None
    requests = list(given) if given else plan(settings)
    splits, held_out = assign_splits(list(dict.fromkeys(request.intent for request in requests)), settings)
    check_splits(given or {}, splits, settings)
    teacher = GivenPairs(given) if given else make_teacher(settings, budget_of(run, settings))
    write_json(folder / "_settings.json", settings.model_dump(mode="json", exclude=settings.HOW))
    total, usage, started = Counter(), Counter(), time.monotonic()
    parts = shards(folder, requests, settings)
    for number, (file, batch) in enumerate(parts, 1):
        if not is_sound(file):
            journal = Journal(journal_of(file))
            written = teacher.write(batch, journal)
            made = [
                pair_rows(r, splits[r.intent], prompts, teacher.name, settings, held_out)
                for r, prompts in zip(batch, written, strict=True)
            ]
            counts = sum((counts for _, counts in made), Counter())
            table = pair_table([row for rows, _ in made for row in rows])
            write_shard(file, table, counts=counts, usage=journal.usage + Counter(without_reply=written.count([])))
        for sums, name in ((total, "counts"), (usage, "usage")):
            sums.update(read_note(file, name))
        passed = max(time.monotonic() - started, 1e-3)
        left = passed / number * (len(parts) - number) / 60
        done = f"shard {number} of {len(parts)}: {total['kept']} pairs, {total['kept'] / passed:.0f}/s"
        print(f"{done}, {left:.1f} min left", flush=True)
    if given:
        print(dropped_line(total, given, settings), flush=True)
    if not total["kept"]:
        raise RunError(f"run={run.name!r}: no prompt was left after filtering ({dict(total)})")
    return dict(total), dict(usage)


def shards(folder: Path, requests: list[Request], settings: DistillationSettings) -> list[tuple[Path, list[Request]]]:
    """The file of each shard, and the requests whose pairs it holds."""
    size = settings.shard_size
    starts = enumerate(range(0, len(requests), size))
    return [(folder / f"part-{number:05d}.parquet", requests[start : start + size]) for number, start in starts]


class GivenPairs:
    """A teacher that has written already: an existing data set of pairs."""

    name = "given"

    def __init__(self, pairs: dict[Request, list[str]]):
        self.pairs = pairs

    def write(self, requests: list[Request], journal: Journal) -> list[list[str]]:
        """The given prompts of each request."""
        return [self.pairs[request] for request in requests]


def journal_of(file: Path) -> Path:
    """Where the teacher's raw replies to a shard's requests are kept."""
    return file.parent / "_replies" / f"{file.stem}.jsonl"


def budget_of(run: RunFolder, settings: DistillationSettings) -> Budget:
    """The requests that a run may still make to its teacher; those for its pairs and of later notebooks are counted."""
    if not settings.teacher_budget:
        return Budget(None)
    journals = (*run.path.glob("01_pairs/_replies/*.jsonl"), *run.path.glob("0[46]_*/**/*teacher.jsonl"))
    return Budget(settings.teacher_budget - sum(Journal(file).usage["requests"] for file in journals))


def cost(usage: dict[str, int], prices: list[float]) -> float:
    """What the tokens cost, in the currency of the prices per million [in, out]; 0 without prices."""
    return sum(
        usage.get(name, 0) * price / 1e6 for name, price in zip(("tokens_in", "tokens_out"), prices, strict=False)
    )


def same_settings(folder: Path, settings: DistillationSettings) -> None:
    """Refuse a folder whose pairs were made with other settings."""
    note = folder / "_settings.json"
    before = json.loads(note.read_text()) if note.exists() else {}
    for name, value in settings.model_dump(mode="json", exclude=settings.HOW).items():
        if name in before and before[name] != value:
            raise RunError(
                f"{folder} was made with {name}={before[name]!r}, now {name}={value!r}: "
                "choose another run name, or delete that folder"
            )


def given_pairs(settings: DistillationSettings) -> dict[Request, list[str]]:
    """An existing data set of pairs, grouped into what a teacher would have been asked; white space becomes one space.

    Raises: SettingsError when a task is unknown, no pair is left, the columns intent and prompt look swapped, or no
    prompt has an allowed length.
    """
    source = f"parameter pairs={settings.pairs!r}"
    table = read_table(settings.pairs, ["task", "intent", "prompt"])
    unknown = set(table.task) - set(TASKS)
    if unknown:
        raise SettingsError(f"{source}: unknown task {sorted(unknown)[0]!r}; allowed are {', '.join(TASKS)}")
    table = table.assign(intent=table.intent.map(clean_intent), prompt=table.prompt.map(lambda p: " ".join(p.split())))
    asked, intended = table.task.isin(settings.tasks), table.intent != ""
    left_out = {"of other tasks": (~asked).sum(), "without an intent": (asked & ~intended).sum()}
    if any(left_out.values()):
        print(f"{source}: left out {', '.join(f'{n:,} pairs {why}' for why, n in left_out.items() if n)}", flush=True)
    table = table[asked & intended]
    if table.empty:
        raise SettingsError(f"{source} holds no pair of the tasks {', '.join(settings.tasks)} that has an intent")
    check_words(table, settings)
    groups = table.groupby(["task", "intent"], sort=False).prompt.apply(list)
    return {Request(task, intent, len(prompts)): prompts for (task, intent), prompts in groups.items()}


def check_words(table: pandas.DataFrame, settings: DistillationSettings) -> None:
    """Raises: SettingsError when the columns intent and prompt look swapped, or no prompt has an allowed length."""
    source = f"parameter pairs={settings.pairs!r}"
    sizes = {name: table[name].str.split().str.len() for name in ("intent", "prompt")}
    intent, prompt = (sizes[name].median() for name in ("intent", "prompt"))
    words, times = SWAPPED
    if intent > max(words, times * prompt):
        raise SettingsError(
            f"{source}: intents have {intent:.0f} words in the median and prompts {prompt:.0f}: are the columns intent "
            f"and prompt swapped? Allowed is a median of {words} words, or of {times} times those of prompts"
        )
    if not sizes["prompt"].between(settings.min_words, settings.max_words).any():
        raise SettingsError(
            f"{source}: no prompt has min_words={settings.min_words} to max_words={settings.max_words} words; they "
            f"have {prompt:.0f} in the median, and max_words may be up to {MOST_WORDS}"
        )


def requests_of(settings: DistillationSettings) -> list[Request]:
    """What the teacher is asked for, or what the given pairs hold."""
    return list(given_pairs(settings)) if settings.pairs else plan(settings)


def check_splits(given: dict[Request, list[str]], splits: dict[str, str], settings: DistillationSettings) -> None:
    """Raises: SettingsError when given pairs are too few to train on each task, to watch training and to test it."""
    found = {(request.task, splits[request.intent]) for request in given}
    for task in dict.fromkeys(request.task for request in given):
        if (task, "train") not in found:
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
    lengths = [len(prompt.split()) for prompts in given.values() for prompt in prompts if prompt]
    longest, shortest = min(max(lengths), MOST_WORDS), min(lengths)
    reasons = {k: n for k, n in Counter(counts).most_common() if n and k not in ("asked", "kept")}
    told, asked = f"{sum(reasons.values()):,} of {counts['asked']:,} prompts dropped", counts["asked"]
    if not reasons:
        return told
    rest = sum(n > MOST_WORDS for n in lengths)
    kept = f"all but {rest:,}" if rest else "them"
    keeps = {
        "too_long": f"max_words={longest} keeps {kept}" if longest > settings.max_words else f"{longest} is the most",
        "too_short": f"min_words={shortest} keeps the short ones",
        "near_duplicate": "near_duplicate=1 keeps all that differ",
        "held_out_word": f"a test_fraction below {settings.test_fraction} holds out fewer words",
    }
    shares = (f"{reason} {n / asked:.1%}" if n / asked >= 0.001 else f"{reason} <0.1%" for reason, n in reasons.items())
    often = (reason for reason, n in reasons.items() if n / asked >= 0.01)  # what is rare needs no other setting
    return "; ".join([f"{told}: {', '.join(shares)}", *(keeps[reason] for reason in often if reason in keeps)])


def pair_table(rows: list[dict[str, str]]) -> pyarrow.Table:
    """Rows of pairs as a table whose columns are there even without rows."""
    import pyarrow as pa

    return pa.Table.from_pylist(rows, schema=pa.schema([(name, pa.string()) for name in COLUMNS]))


def read_pairs(run: RunFolder, split: str | None = None) -> pandas.DataFrame:
    """Pairs of a run, of one split or of all."""
    return read_shards(run / "01_pairs", split)
