"""Rewards: numbers that a prompt achieved. The registry carries each through commands, training and analysis.

In go pairs of intent and prompt; out come one number per pair and reward, and 02_annotated. Nothing here knows how
rewards become commands.

A new reward is one function:

    @reward("mentions_colour", unit="share of words")
    def mentions_colour(pairs, embed):
        return pairs.prompt.str.split().map(lambda words: sum(w in {"red", "blue"} for w in words) / len(words))
"""

from __future__ import annotations

import builtins
import difflib
import inspect
import re
import symtable
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from udrl_utils.commands import usual_scripts
from udrl_utils.encoder import Embed, Encoder
from udrl_utils.errors import RunError, SettingsError
from udrl_utils.judge import budget_of_judge, judge_of, make_judge
from udrl_utils.runs import (
    RunFolder,
    read_note,
    read_shards,
    renew,
    shards_of,
    stamp,
    write_json,
)
from udrl_utils.settings import AnnotationSettings
from udrl_utils.teachers.replies import Journal
from udrl_utils.teachers.server import Budget
from udrl_utils.text import count_words, stem, words
from udrl_utils.workers import Maker, spread

if TYPE_CHECKING:
    import pyarrow

QUOTED = re.compile(r"""["“«„]([^"“”«»„]+)["”»“]|(?<!\w)['‘](\w[^'’]*)['’](?!\w)""")
DENIED = re.compile(r"\b(?:no|not|without|never)\s+(?:(?:an?|any|the)\s+)?(\w+)|\b(\w+)[- ]free\b", re.I)
NEGATIONS = frozenset(("no", "not", "without", "never", "zero", "minus"))


@dataclass(frozen=True)
class Reward:
    """A named reward. `score(pairs, embed)` returns one float per row of `pairs` (task, intent, prompt, ...)."""

    name: str
    unit: str
    score: Callable[[pd.DataFrame, Embed], Any]
    source: str
    partial: bool = False  # whether some pairs may have no value, NaN


REWARDS: dict[str, Reward] = {}


def reward(name: str, unit: str, partial: bool = False) -> Callable[[Callable], Callable]:
    """Register a function (pairs, embed) -> one float per pair under a name; NaN is a value of partial rewards only.

    The function's own source travels with the run, so it must import what it uses inside itself.
    `embed(texts)` gives unit vectors, shape (len(texts), width), float32.
    """
    if not name.isidentifier():
        raise SettingsError(f"reward name {name!r} must be an identifier, such as mentions_colour")

    def register(score: Callable) -> Callable:
        REWARDS[name] = Reward(name, unit, score, textwrap.dedent(inspect.getsource(score)), partial)
        return score

    return register


@reward("length", unit="words")
def length(pairs: pd.DataFrame, embed: Embed) -> Any:
    """Words of the prompt, split at white space; in scripts without spaces, each character counts."""
    return pairs.prompt.map(count_words)


@reward("relevance", unit="cosine")
def relevance(pairs: pd.DataFrame, embed: Embed) -> Any:
    """Cosine of the embeddings of intent and prompt, -1..1."""
    return (embed(pairs.intent) * embed(pairs.prompt)).sum(1)


@reward("diversity", unit="1 - mean cosine", partial=True)
def diversity(pairs: pd.DataFrame, embed: Embed) -> Any:
    """1 - mean cosine to the other prompts of the same task and intent, 0..2; NaN for a prompt that has no others.

    A column `set` splits an intent's prompts further, where several sets were generated for it.
    """
    vectors, result = embed(pairs.prompt), np.full(len(pairs), np.nan)
    keys = [column for column in ("task", "intent", "set") if column in pairs]
    for rows in pairs.groupby(keys, sort=False).indices.values():
        if len(rows) > 1:
            cosines = vectors[rows] @ vectors[rows].T
            result[rows] = 1 - (cosines.sum(1) - cosines.diagonal()) / (len(rows) - 1)
    return result


@reward("kept", unit="share")
def kept(pairs: pd.DataFrame, embed: Embed) -> Any:
    """Share of the intent's names, numbers, quoted words and negations that the prompt keeps; 1 where it has none.

    Upper and lower case count the same. Names are known by their capitals, and negations in English only.
    """
    return [share_kept(intent, prompt) for intent, prompt in zip(pairs.intent, pairs.prompt, strict=True)]


def share_kept(intent: str, prompt: str) -> float:
    """Share of what a prompt must keep of an intent that it keeps, 0..1."""
    said, (texts, denied) = words(prompt), to_keep(intent)
    found = [f" {text} " in f" {' '.join(said)} " for text in texts] + [denies(said, word) for word in denied]
    return float(np.mean(found or [True]))


@lru_cache(maxsize=10_000)
def to_keep(intent: str) -> tuple[list[str], list[str]]:
    """What a prompt must keep of an intent: words that stand in it as they are, and words that it denies."""
    quoted = [a or b for a, b in QUOTED.findall(intent)]
    rest = QUOTED.sub(" ", intent)
    denied = [(first or second).lower() for first, second in DENIED.findall(rest)]
    typed = [word for word in DENIED.sub(" ", rest).split() if any(map(str.isalnum, word))]
    shouted = rest.isupper() or (len(typed) > 2 and all(w[0].isupper() or not w[0].isalpha() for w in typed))
    named = [
        word
        for place, word in enumerate(typed)
        if any(map(str.isdigit, word))
        or (not shouted and (word[1:] != word[1:].lower() or (place and word[0].isupper())))
    ]
    return [*filter(None, (" ".join(words(text)) for text in [*quoted, *named]))], denied


def denies(said: list[str], word: str) -> bool:
    """Whether the words of a prompt rule something out: "no people", "without any people", "people-free"."""
    return f"{word}-free" in said or any(
        part in NEGATIONS and stem(word) in map(stem, said[place + 1 : place + 4]) for place, part in enumerate(said)
    )


BUILT_IN = frozenset({*REWARDS, "judge"})


def add_judge(settings: AnnotationSettings, run: RunFolder, stage: str = "02_annotated") -> None:
    """Register the LLM judge that the settings name, if they name one; `stage` keeps the votes that it pays for."""
    if settings.judge_model:
        REWARDS["judge"] = Reward("judge", "1..10", make_judge(settings, run, stage), source="", partial=True)


def annotate(pairs: pd.DataFrame, rewards: Sequence[str], embed: Embed) -> pd.DataFrame:
    """The pairs with one float column per reward.

    Raises: SettingsError when a reward is unknown, RunError when it has the wrong length or is not finite.
    """
    columns = {}
    for name in check_known(rewards):
        values = columns[name] = np.asarray(REWARDS[name].score(pairs, embed), dtype=float)
        if values.shape != (len(pairs),):
            raise RunError(
                f"reward {name!r} returned shape {values.shape} for {len(pairs)} pairs; one number each is wanted"
            )
        wrong = int((~np.isfinite(values)).sum())
        if wrong and not REWARDS[name].partial:
            raise RunError(f"reward {name!r} returned {wrong} values that are not finite numbers")
    return pairs.assign(**columns)


def annotate_run(settings: AnnotationSettings, run: RunFolder) -> pd.DataFrame:
    """Score the pairs of a run shard by shard and write 02_annotated; the annotated pairs are returned too.

    A shard that was scored before is not scored again, unless the pairs, the settings or a user-made reward have
    changed, or votes of the judge are missing. All prompts of a task and intent are in one shard, so that sets are
    complete.
    """
    folder, pairs = run / "02_annotated", shards_of(run / "01_pairs")
    check_known(settings.rewards)
    save_rewards(folder, settings.rewards)
    check_scripts(settings, pairs)
    renew(folder, stamp(settings, [*pairs, folder / "_rewards.py"]), "part-*.parquet")
    here, budget = settings.workers == "local", budget_of_judge(settings, run)
    build = partial(Annotator, settings) if here else partial(annotator_of_worker, settings, run.path)
    parts = [(folder / source.name, source) for source in pairs]
    done = spread(settings, run, "02_annotated", build, parts, Annotator.lacks, budget, computes=True)
    for number, _ in enumerate(done, 1):
        print(f"shard {number} of {len(pairs)} scored", flush=True)
    return read_annotated(run)


class Annotator(Maker):
    """Scores shards of a run with the registered rewards."""

    replies = "votes of the judge"

    def __init__(self, settings: AnnotationSettings, budget: Budget, reopen: Callable[[], None]):
        super().__init__(reopen)
        self.rewards, self.embed = settings.rewards, Encoder(settings.encoder)
        self.judge = REWARDS["judge"].score if "judge" in settings.rewards else None

    @staticmethod
    def lacks(file: Path) -> int:
        return read_note(file, "left_out")

    def make(self, file: Path, source: Path) -> tuple[pyarrow.Table, dict[str, Any], int]:
        import pyarrow as pa

        annotated = annotate(pd.read_parquet(source), self.rewards, self.embed)
        self.embed.forget()
        left_out = self.judge.journal.left_out.total() if self.judge else 0
        return pa.Table.from_pandas(annotated, preserve_index=False), {"left_out": left_out}, left_out


def annotator_of_worker(
    settings: AnnotationSettings, path: Path, budget: Budget, reopen: Callable[[], None]
) -> Callable[[Path, Path], None]:
    """What scores shards on a worker: with the rewards that the run's owner made, and a journal of votes per shard."""
    folder = path / "02_annotated"
    read_rewards(folder)
    paid = Journal(folder / "_judge.jsonl").replies  # by a run without workers
    if "judge" in settings.rewards:
        judge = judge_of(settings, Journal(folder / "_judge.jsonl"), budget)
        REWARDS["judge"] = Reward("judge", "1..10", judge, source="", partial=True)
    annotator = Annotator(settings, budget, reopen)

    def score(file: Path, source: Path) -> None:
        if annotator.judge:
            annotator.judge.journal = journal = Journal(folder / "_judge" / f"{file.stem}.jsonl")
            journal.replies = paid | journal.replies
        annotator(file, source)

    return score


def check_scripts(settings: AnnotationSettings, pairs: Sequence[Path]) -> None:
    """Print a line where the bundled encoder, which reads English, scores intents in other scripts."""
    if settings.encoder != "minilm" or not {"relevance", "diversity"} & {*settings.rewards}:
        return
    texts = dict.fromkeys(text for file in pairs for text in pd.read_parquet(file, columns=["intent"]).intent.unique())
    other = [script for script in usual_scripts(texts) if script != "LATIN"]
    if other:
        print(
            f"encoder='minilm' reads English, and the intents are in {', '.join(other)} too: relevance and diversity "
            "mean little there; name a multilingual one, such as encoder=paraphrase-multilingual-MiniLM-L12-v2",
            flush=True,
        )


def read_annotated(run: RunFolder, split: str | None = None) -> pd.DataFrame:
    """Annotated pairs of a run, of one split or of all."""
    return read_shards(run / "02_annotated", split)


def check_known(rewards: Sequence[str]) -> Sequence[str]:
    """The names, if all of them are registered; SettingsError otherwise."""
    for name in rewards:
        if name not in REWARDS:
            near = difflib.get_close_matches(name, REWARDS, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise SettingsError(f"unknown reward {name!r} in rewards; {hint}registered are {', '.join(REWARDS)}")
    return rewards


def save_rewards(folder: Path, rewards: Sequence[str]) -> None:
    """Keep what the rewards of a run are beside the annotations: units as data, and the source of user-made ones.

    Raises: SettingsError for a source that reads what only its notebook knows.
    """
    sources = {name: REWARDS[name].source for name in rewards if name not in BUILT_IN}
    for name, source in sources.items():
        if outside := outside_names(source):
            raise SettingsError(
                f"reward {name!r} uses {', '.join(sorted(outside))} of its notebook, which later notebooks do not have:"
                " import or define it inside the function"
            )
    write_json(folder / "_units.json", {name: REWARDS[name].unit for name in rewards})
    (folder / "_rewards.py").write_text(
        "from udrl_utils import rewards\nfrom udrl_utils.rewards import reward\n\n\n" + "\n\n".join(sources.values())
    )


def outside_names(source: str) -> set[str]:
    """Names that a piece of code uses and does not define, without those that _rewards.py has."""
    top = symtable.symtable(source, "reward", "exec")
    defined = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    used, tables = set(), [top]
    while tables:
        scope = tables.pop()
        tables += scope.get_children()
        used |= {s.get_name() for s in scope.get_symbols() if s.is_referenced() and (scope is top or s.is_global())}
    return used - defined - set(dir(builtins)) - {"rewards", "reward"}


def load_rewards(run: RunFolder, stage: str) -> None:
    """Register the rewards of a run for one of its later stages: its judge, and those that its owner made. A line says
    where the encoder does not know the run's scripts.

    The source of the latter is executed, so only a stage that continues one's own run calls this, and no report does.
    """
    settings = run.settings(AnnotationSettings)
    add_judge(settings, run, stage)
    check_scripts(settings, shards_of(run / "01_pairs"))
    read_rewards(run / "02_annotated")


def read_rewards(folder: Path) -> None:
    """Register the user-made rewards kept in a folder by executing their source."""
    file = folder / "_rewards.py"
    exec(compile(file.read_text(), str(file), "exec"), {"__name__": "run_rewards"})
