"""Distillation: the pairs of a run, made shard by shard.

In go settings and either a teacher or a data set of pairs; out come the shards of 01_pairs: prompts that passed the
filters and are no near-duplicates, each with its split. Nothing here knows how a teacher works or what a reward is.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from udrl_utils.errors import RunError, SettingsError
from udrl_utils.filters import borrows, drop_near_duplicates, reject_reasons
from udrl_utils.ontology import ontology_intents
from udrl_utils.own_pairs import check_splits, dropped_line, given_pairs
from udrl_utils.runs import RunFolder, keep, read_note, read_shards, shards_of, stamp
from udrl_utils.settings import DistillationSettings
from udrl_utils.splits import assign_splits, mentions
from udrl_utils.tables import load_intents
from udrl_utils.tasks import TASKS
from udrl_utils.teachers import Teacher, make_teacher
from udrl_utils.teachers.recorded import RECORDED, RecordedTeacher, recorded_requests
from udrl_utils.teachers.replies import Journal, Request
from udrl_utils.teachers.server import Budget
from udrl_utils.text import distinct
from udrl_utils.workers import Maker, spread

if TYPE_CHECKING:
    import pyarrow

COLUMNS = ("pair_id", "split", "task", "modality", "intent", "prompt", "teacher")
SHOWN = 3  # prompts that are shown for each reason why some were dropped


def extra_teacher(run: RunFolder) -> Teacher:
    """The teacher of a finished run, for later notebooks, with what is left of its teacher_budget.

    Its `write` raises RunError when the requests of all notebooks together would exceed that budget.
    """
    settings = run.settings(DistillationSettings)
    return make_teacher(settings, budget_of(run, settings))


def plan(settings: DistillationSettings) -> list[Request]:
    """What the teacher is asked: one request per intent, with the tasks in turn.

    Intents from the ontology are drawn for their task; a recorded teacher has its own intents.
    Raises: SettingsError when the intents cannot be read or were not recorded.
    """
    tasks, n = settings.tasks, settings.prompts_per_intent
    if settings.teacher == "recorded":
        return recorded_requests(settings)
    if settings.intents != "ontology":
        return [Request(tasks[k % len(tasks)], intent, n) for k, intent in enumerate(load_intents(settings))]
    if not settings.n_intents:
        raise SettingsError("parameter n_intents=0 must be at least 1 with intents='ontology', which is endless")
    drawn = itertools.cycle([(task, ontology_intents(settings.seed, task)) for task in tasks])
    asked = distinct(Request(task, next(intents), n) for task, intents in drawn)
    return list(itertools.islice(asked, settings.n_intents))


def pair_id(*parts: str) -> str:
    """Id of a pair: a hash of its parts."""
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=6).hexdigest()


def kept_pairs(
    requests: Sequence[Request],
    written: Sequence[list[str]],
    splits: dict[str, str],
    teacher: str,
    settings: DistillationSettings,
    held_out: frozenset[str],
) -> tuple[pd.DataFrame, Counter, dict[str, list[list[str]]]]:
    """The pairs (COLUMNS) that are kept of what was written for each request, how many prompts met which fate, and
    up to SHOWN intents and prompts that were dropped for each reason.

    `splits` gives the split of an intent; outside the test split no prompt may mention a held-out noun.
    """
    rows = pd.DataFrame(map(astuple, requests), columns=["task", "intent", "n"]).assign(prompt=list(written))
    counts = Counter(asked=int(rows.n.sum()), missing=int((rows.n - rows.prompt.str.len()).clip(lower=0).sum()))
    rows = rows.explode("prompt").dropna().rename_axis("request").reset_index()
    rows["split"] = rows.intent.map(splits)
    reasons = reject_reasons(rows, settings)
    if held_out:
        named = rows.prompt.map(lambda text: mentions(text, held_out)).astype(bool)
        reasons = reasons.mask((reasons == "") & named & (rows.split != "test"), "held_out_word")
    if settings.teacher_form == "single" and not settings.pairs:  # some models repeat the examples that they are shown
        borrowed = [borrows(*row) for row in zip(rows.task, rows.intent, rows.prompt, strict=True)]
        reasons = reasons.mask((reasons == "") & pd.Series(borrowed, rows.index, bool), "from_example")
    fine = rows[reasons == ""]
    groups = fine.groupby("request").prompt
    kept = [k for _, group in groups for k in group.index[drop_near_duplicates(list(group), settings.near_duplicate)]]
    reasons[fine.index.difference(kept)] = "near_duplicate"
    counts.update(reasons.replace("", "kept").value_counts().to_dict())
    shown = rows[reasons != ""].groupby(reasons[reasons != ""]).head(SHOWN)
    dropped = {
        why: group[["intent", "prompt"]].to_numpy().tolist() for why, group in shown.groupby(reasons[shown.index])
    }
    rows = rows.loc[kept]
    keys = [pair_id(*parts) for parts in rows[["task", "intent", "prompt"]].itertuples(index=False)]
    modality = rows.task.map(lambda task: TASKS[task].modality)
    return rows.assign(pair_id=keys, modality=modality, teacher=teacher)[list(COLUMNS)], counts, dropped


def distil(settings: DistillationSettings, run: RunFolder) -> tuple[dict[str, int], dict[str, int]]:
    """Make every missing shard of 01_pairs, and ask again for the replies that finished shards lack.

    Returns the counts of the whole run: prompts by their fate, `kept` included; and what the teacher has used:
    requests, tokens_in, tokens_out, failures by name, and as left_out_<fault> the questions without a reply.
    Raises: RunError when the folder holds pairs made with other settings or from other content, or when no prompt
    passes the filters.
    """
    folder = run / "01_pairs"
    given = given_pairs(settings) if settings.pairs else {}
    requests = list(given) or plan(settings)
    splits, held_out = assign_splits(list(dict.fromkeys(request.intent for request in requests)), settings)
    check_splits(given, splits, settings)
    keep(folder, stamp_of(settings, requests, given))
    total, usage, started = Counter(), Counter(), time.monotonic()
    build = partial(PairMaker, settings, held_out, bool(given))
    parts = [
        Shard(file, batch, {r.intent: splits[r.intent] for r in batch}, [given[r] for r in batch] if given else None)
        for file, batch in shards(folder, requests, settings)
    ]
    budget, computes = budget_of(run, settings), settings.teacher == "local" and not given
    done = spread(settings, run, "01_pairs", build, parts, PairMaker.lacks, budget, computes)
    for number, (file, *_) in enumerate(done, 1):
        for sums, name in ((total, "counts"), (usage, "usage")):
            sums.update(read_note(file, name))
        passed = max(time.monotonic() - started, 1e-3)
        left = passed / number * (len(parts) - number) / 60
        done_so_far = f"shard {number} of {len(parts)}: {total['kept']} pairs, {total['kept'] / passed:.0f}/s"
        print(f"{done_so_far}, {left:.1f} min left", flush=True)
    if given:
        print(dropped_line(total, given, settings), flush=True)
    if left_out(usage):
        why = ", ".join(f"{name.removeprefix('left_out_')} {n}" for name, n in usage.items() if "left_out_" in name)
        print(f"{left_out(usage)} replies are left out ({why}); the next run of notebook 01 asks for them", flush=True)
    if not total["kept"]:
        raise RunError(f"run={run.name!r}: no prompt was left after filtering ({dict(total)})")
    return dict(total), dict(usage)


class Shard(NamedTuple):
    """What a shard of 01_pairs is made from."""

    file: Path
    requests: list[Request]
    splits: dict[str, str]  # of their intents
    given: list[list[str]] | None  # prompts of each request, where pairs are given in place of a teacher


class PairMaker(Maker):
    """Makes shards of 01_pairs; `budget` is how many requests its teacher may make."""

    replies = "replies"

    def __init__(
        self,
        settings: DistillationSettings,
        held_out: frozenset[str],
        given: bool,
        budget: Budget,
        reopen: Callable[[], None],
    ):
        super().__init__(reopen)
        self.settings, self.held_out = settings, held_out
        self.teacher = RecordedTeacher("given", {}) if given else make_teacher(settings, budget)

    @staticmethod
    def lacks(file: Path) -> int:
        return left_out(read_note(file, "usage"))

    def make(
        self, file: Path, requests: list[Request], splits: dict[str, str], given: list[list[str]] | None
    ) -> tuple[pyarrow.Table, dict[str, Any], int]:
        journal = Journal(journal_of(file))
        written = given or self.teacher.write(requests, journal)
        pairs, counts, dropped = kept_pairs(requests, written, splits, self.teacher.name, self.settings, self.held_out)
        missing = Counter({f"left_out_{why}": n for why, n in journal.left_out.items()})
        notes = {"counts": counts, "usage": journal.usage + missing, "dropped": dropped}
        return pair_table(pairs), notes, missing.total()


def dropped_prompts(run: RunFolder) -> pd.DataFrame:
    """Up to SHOWN prompts for each reason that a run's prompts were dropped for: reason, intent, prompt."""
    notes = [read_note(file, "dropped") or {} for file in shards_of(run / "01_pairs")]
    rows = [(why, *pair) for note in notes for why, pairs in note.items() for pair in pairs]
    return pd.DataFrame(rows, columns=["reason", "intent", "prompt"]).groupby("reason").head(SHOWN)


def left_out(usage: dict[str, int]) -> int:
    """Questions to a teacher that have no reply."""
    return sum(n for name, n in usage.items() if name.startswith("left_out_"))


def stamp_of(
    settings: DistillationSettings, requests: list[Request], given: dict[Request, list[str]]
) -> dict[str, dict]:
    """What the pairs are made from: settings, the intents or pairs that were read, and the recording if it is used."""
    name = "pairs" if given else "intents"
    read = [[*astuple(request), *given.get(request, ())] for request in requests]
    recorded = settings.teacher == "recorded" and not given
    files = [RECORDED / "prompts.parquet"] if recorded else []
    files += [Path(settings.tasks_file)] if settings.tasks_file else []
    return stamp(settings, files, **{f"{name}={getattr(settings, name)!r}": read})


def shards(folder: Path, requests: list[Request], settings: DistillationSettings) -> list[tuple[Path, list[Request]]]:
    """The file of each shard, and the requests whose pairs it holds."""
    size = settings.shard_size
    starts = enumerate(range(0, len(requests), size))
    return [(folder / f"part-{number:05d}.parquet", requests[start : start + size]) for number, start in starts]


def journal_of(file: Path) -> Path:
    """Where the teacher's raw replies to a shard's requests are kept."""
    return file.parent / "_replies" / f"{file.stem}.jsonl"


def budget_of(run: RunFolder, settings: DistillationSettings) -> int | None:
    """How many requests a run may still make to its teacher, later notebooks included; None for any number."""
    if not settings.teacher_budget:
        return None
    journals = (*run.path.glob("01_pairs/_replies/*.jsonl"), *run.path.glob("0[46]_*/**/*teacher.jsonl"))
    return settings.teacher_budget - sum(Journal(file).usage["requests"] for file in journals)


def cost(usage: dict[str, int], prices: list[float]) -> float:
    """What the tokens cost, in the currency of the prices per million [in, out]; 0 without prices."""
    tokens = [usage.get("tokens_in", 0), usage.get("tokens_out", 0)]
    return sum(n * price / 1e6 for n, price in zip(tokens, prices, strict=False))


def requests_of(settings: DistillationSettings) -> list[Request]:
    """What the teacher is asked for, or what the given pairs hold."""
    return list(given_pairs(settings)) if settings.pairs else plan(settings)


def pair_table(pairs: pd.DataFrame) -> pyarrow.Table:
    """Pairs as a table of text columns; without rows too, it has all columns."""
    import pyarrow as pa

    schema = pa.schema([(name, pa.string()) for name in COLUMNS])
    return pa.Table.from_pandas(pairs, schema, preserve_index=False)


def read_pairs(run: RunFolder, split: str | None = None) -> pd.DataFrame:
    """Pairs of a run, of one split or of all."""
    return read_shards(run / "01_pairs", split)
