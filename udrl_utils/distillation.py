"""Distillation: ask the teacher shard by shard, parse and filter its replies, drop repetitions, write pairs."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udrl_utils.settings import DistillationSettings, RunError, RunFolder, SettingsError, write_json
from udrl_utils.tasks import TASKS, assign_splits, clean_intent, load_intents, read_table, words
from udrl_utils.teachers import Request, make_teacher

if TYPE_CHECKING:
    import pandas

COLUMNS = ("pair_id", "split", "task", "modality", "intent", "prompt", "teacher")
REFUSAL = re.compile(r"^(?:i(?:'m| am) sorry|sorry,|i can(?:no|')t|i am unable|as an ai|i won't)\b", re.I)
MARKUP = re.compile(r"</?[a-z][^>]*>|```|\]\(|^#+ |\*\*|[{}]", re.I)
ITEM = re.compile(r"^\s*(?:[-*•]|\(?\d{1,3}[.):])\s+")


def parse_reply(reply: str) -> list[str]:
    """Prompts of a raw reply: a JSON list, alone or within prose; else a numbered or bulleted list; else its lines.

    Never raises: what cannot be read gives an empty list.
    """
    for start in (match.start() for match in re.finditer(r"\[", reply[:2000])):
        try:
            found, _ = json.JSONDecoder().raw_decode(reply[start:])
        except (ValueError, RecursionError):
            continue
        if found and all(isinstance(item, str) for item in found):
            return [item.strip() for item in found]
    lines = [line for line in reply.splitlines() if line.strip() and not line.strip().startswith("```")]
    items = [line for line in lines if ITEM.match(line)]
    return [ITEM.sub("", line).strip().strip("\"'“”").strip() for line in items or lines]


def reject_reason(
    intent: str, prompt: str, settings: DistillationSettings, held_out: frozenset[str] = frozenset()
) -> str | None:
    """Why a prompt is not kept, or None."""
    length = len(prompt.split())
    if not prompt.strip():
        return "empty"
    if not prompt.isprintable():
        return "control_characters"
    if REFUSAL.match(prompt):
        return "refusal"
    if MARKUP.search(prompt):
        return "markup"
    if clean_intent(prompt) == clean_intent(intent):
        return "same_as_intent"
    if length < settings.min_words:
        return "too_short"
    if length > settings.max_words:
        return "too_long"
    return None if held_out.isdisjoint(words(prompt)) else "held_out_word"


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


def plan(intents: list[str], settings: DistillationSettings) -> list[Request]:
    """Requests in order: each intent with its tasks, in turn."""
    tasks, each = settings.tasks, min(settings.tasks_per_intent, len(settings.tasks))
    return [
        Request(tasks[(i + k) % len(tasks)], intent, settings.prompts_per_intent)
        for i, intent in enumerate(intents)
        for k in range(each)
    ]


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
    counts, fine = Counter({"asked": request.n}), []
    for prompt in (" ".join(prompt.split(" ")) for prompt in prompts):
        reason = reject_reason(request.intent, prompt, settings, frozenset() if split == "test" else held_out)
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


def distil(settings: DistillationSettings, run: RunFolder) -> dict[str, int]:
    """Make every missing shard of 01_pairs; returns the counts of the whole run by reason, `kept` included.

    Raises: RunError when the folder holds pairs made with other settings, or nothing is left after filtering.
    """
    folder = run / "01_pairs"
    same_settings(folder, settings)
    given = given_pairs(settings) if settings.pairs else None
    intents = list(dict.fromkeys(request.intent for request in given)) if given else load_intents(settings)
    splits, held_out = assign_splits(intents, settings)
    requests = list(given) if given else plan(intents, settings)
    teacher = None if given else make_teacher(settings)
    write_json(folder / "_settings.json", settings.model_dump(mode="json", exclude={"run"}))
    total, started = Counter(), time.monotonic()
    shards = range(0, len(requests), settings.shard_size)
    for number, start in enumerate(shards):
        file = folder / f"part-{number:05d}.parquet"
        if not file.exists():
            batch = requests[start : start + settings.shard_size]
            replies = [given[r] for r in batch] if given else [parse_reply(reply) for reply in teacher.write(batch)]
            name = "given" if given else teacher.name
            made = [
                pair_rows(r, splits[r.intent], reply, name, settings, held_out)
                for r, reply in zip(batch, replies, strict=True)
            ]
            write_shard(file, [row for rows, _ in made for row in rows], sum((counts for _, counts in made), Counter()))
        total.update(read_counts(file))
        passed = max(time.monotonic() - started, 1e-3)
        left = passed / (number + 1) * (len(shards) - number - 1) / 60
        done = f"shard {number + 1} of {len(shards)}: {total['kept']} pairs, {total['kept'] / passed:.0f}/s"
        print(f"{done}, {left:.1f} min left", flush=True)
    if not total["kept"]:
        raise RunError(f"run={run.name!r}: no prompt was left after filtering ({dict(total)})")
    return dict(total)


def same_settings(folder: Path, settings: DistillationSettings) -> None:
    """Refuse a folder whose pairs were made with other settings."""
    note = folder / "_settings.json"
    before = json.loads(note.read_text()) if note.exists() else {}
    for name, value in settings.model_dump(mode="json").items():
        if name in before and before[name] != value:
            raise RunError(
                f"{folder} was made with {name}={before[name]!r}, now {name}={value!r}: "
                "choose another run name, or delete that folder"
            )


def given_pairs(settings: DistillationSettings) -> dict[Request, list[str]]:
    """An existing data set of pairs, grouped into what a teacher would have been asked."""
    table = read_table(settings.pairs, ["task", "intent", "prompt"])
    unknown = set(table.task) - set(TASKS)
    if unknown:
        raise SettingsError(
            f"parameter pairs={settings.pairs!r}: unknown task {sorted(unknown)[0]!r}; allowed are {', '.join(TASKS)}"
        )
    table = table.assign(intent=table.intent.map(clean_intent))
    table = table[table.task.isin(settings.tasks) & (table.intent != "")]
    if table.empty:
        raise SettingsError(
            f"parameter pairs={settings.pairs!r} holds no pair of the tasks {', '.join(settings.tasks)}"
        )
    groups = table.groupby(["task", "intent"], sort=False).prompt.apply(list)
    return {Request(task, intent, len(prompts)): prompts for (task, intent), prompts in groups.items()}


def write_shard(file: Path, rows: list[dict[str, str]], counts: Counter) -> None:
    """Write a shard under a temporary name and rename it; its counts travel in the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [(name, pa.string()) for name in COLUMNS], metadata={"counts": json.dumps(counts, sort_keys=True)}
    )
    temporary = file.with_suffix(".tmp")
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)
    temporary.replace(file)


def read_counts(file: Path) -> Counter:
    """The counts of a shard."""
    import pyarrow.parquet as pq

    return Counter(json.loads(pq.read_schema(file).metadata[b"counts"]))


def read_pairs(run: RunFolder, split: str | None = None) -> pandas.DataFrame:
    """Pairs of a run, of one split or of all."""
    import pandas

    table = pandas.concat(
        map(pandas.read_parquet, sorted((run / "01_pairs").glob("part-*.parquet"))), ignore_index=True
    )
    return table if split is None else table[table.split == split].reset_index(drop=True)
