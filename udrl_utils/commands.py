"""Commands, the rewards that are asked for, and the codec that writes them as tokens.

Annotated pairs go in; out come quantile edges, level bins, and the tokens of a command. Nothing here knows a model or
a tokenizer: a command is text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from udrl_utils.errors import UserError
from udrl_utils.runs import write_json
from udrl_utils.text import count_words, harmless, lower_intent, pieces, scripts

if TYPE_CHECKING:
    import pandas as pd  # 80 MB, which a server does without

END_OF_PREFIX = "<|prompt|>"
LENGTH_BAND = 4  # words; how finely the codec knows which lengths go with which levels
USUAL = (0.02, 0.98)  # quantiles of the train split's lengths, between which a length is usual
RARE = 0.01  # share of the train intents up to which capitals, or a script, count as not learned
SUPPORT = 3  # train pairs at or next to a combination that make it feasible


class CommandError(UserError):
    """A command asks for something that the student does not know."""


class Command:
    """Rewards that are asked for. `length` is in words; every other reward is a quantile level 0..1 of what the
    train split achieved. A reward left out is left open.

        Command(task="text_to_image", length=18, relevance=0.9)
    """

    def __init__(self, task: str, length: int | None = None, **levels: float | None):
        if length is not None and (not isinstance(length, int) or length < 1):
            raise CommandError(f"length={length!r} must be a whole number of words from 1")
        self.task, self.length = task, length
        self.levels = {name: level for name, level in levels.items() if level is not None}
        for name, level in self.levels.items():
            if not isinstance(level, (int, float)) or not 0 <= level <= 1:
                raise CommandError(f"{name}={level!r} must be a level from 0 to 1")

    @property
    def asked(self) -> dict[str, float]:
        """The rewards that are asked for, by name."""
        return {"length": self.length, **self.levels} if self.length else self.levels

    def __repr__(self) -> str:
        asked = (f"{name}={value:.3g}" for name, value in self.asked.items())
        return f"Command({', '.join([repr(self.task), *asked])})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Command) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __lt__(self, other: Command) -> bool:
        """Tables can be grouped by command, for which pandas sorts them."""
        return repr(self) < repr(other)


def usual_scripts(texts: Iterable[str]) -> list[str]:
    """Scripts that more than the share RARE of the letters of texts are in, the most frequent first."""
    letters = scripts(" ".join(texts))
    return [script for script, n in letters.most_common() if n > RARE * letters.total()]


@dataclass(frozen=True)
class CommandCodec:
    """Rewards <-> command tokens, fitted on the train split: exact for length, quantile levels for other rewards.

    edges[task][reward] are the bins + 1 quantiles of the reward, of rewards that the task's pairs have values of;
    best[task] holds what its best command asks for; lengths[task] are its shortest and longest usual prompt [words];
    joint[task] counts which combinations occurred: rows of length band, level bins, number of pairs.
    sampling holds how the student samples by default: temperature, min_p, guidance and candidates.
    form and place say how commands are written: as tokens, as text or not at all; before the intent or after it.
    horizon is the number of words between two countdown tokens in the training prompts, 0 for none.
    cased says whether train intents have capitals; if not, the student reads intents in lower case. scripts are those
    that the train intents are written in, and all but the RARE of them have at most intent_words words, 0 where that is
    not known. words are those of the train split, with a space between them: a prompt with any other is drawn again.
    reads says whether the student has learnt to tell the levels of a prompt, in the tokens that follow its end.
    """

    bins: int
    longest: int
    edges: dict[str, dict[str, list[float]]]
    best: dict[str, dict[str, float]] = field(default_factory=dict)
    joint: dict[str, list[list[int]]] = field(default_factory=dict)
    lengths: dict[str, list[int]] = field(default_factory=dict)
    form: str = "tokens"
    place: str = "first"
    horizon: int = 0
    sampling: dict[str, float] = field(default_factory=dict)
    cased: bool = False
    scripts: list[str] = field(default_factory=lambda: ["LATIN"])
    intent_words: int = 0
    words: str = ""
    reads: bool = False

    @classmethod
    def fit(cls, annotated: pd.DataFrame, rewards: list[str], bins: int) -> CommandCodec:
        """Fit on annotated pairs of the train split (columns task and one per reward).

        A reward without two different values among a task's pairs is not commanded for that task, and a line says so.
        """
        import pandas as pd

        levels = [name for name in rewards if name != "length"]
        edges: dict[str, dict[str, list[float]]] = {}
        for task, rows in annotated.groupby("task"):
            edges[task] = {}
            for name in levels:
                values = rows[name].dropna()
                if values.nunique() < 2:
                    if len(values):
                        why = f"it is the same for all pairs, {values.iloc[0]:.3g}"
                    elif name == "diversity":
                        why = "each of its intents has one prompt, and diversity compares the prompts of an intent"
                    else:
                        why = "no pair has a value"
                    print(f"{name} is not commanded for {task}: {why}", flush=True)
                    continue
                edges[task][name] = np.quantile(values, np.linspace(0, 1, bins + 1), method="higher").tolist()
        longest, lengths = 0, {}
        if "length" in rewards:
            longest = int(annotated.length.max())
            usual = annotated.groupby("task").length.quantile(list(USUAL)).round().astype(int)
            lengths = {task: usual[task].tolist() for task in edges}
        intents = annotated.get("intent", pd.Series(dtype=str)).drop_duplicates()
        cased = bool((intents != intents.str.lower()).mean() > RARE)
        scripts = usual_scripts(intents) or ["LATIN"]
        most = int(intents.map(count_words).quantile(1 - RARE)) if len(intents) else 0
        codec = cls(bins, longest, edges, lengths=lengths, cased=cased, scripts=scripts, intent_words=most)
        return replace(codec, joint={task: codec._combinations(task, rows) for task, rows in annotated.groupby("task")})

    def _combinations(self, task: str, rows: pd.DataFrame) -> list[list[int]]:
        rows = rows.dropna(subset=list(self.edges[task]))
        bands = rows.length // LENGTH_BAND if self.longest else np.zeros(len(rows))
        bins = self.bins_of(rows)[list(self.edges[task])]
        cells, counts = np.unique(np.column_stack([bands, bins]).astype(int), axis=0, return_counts=True)
        return np.column_stack([cells, counts]).tolist()

    @property
    def rewards(self) -> list[str]:
        """Rewards that can be commanded, in the order of their tokens."""
        return ["length"] * (self.longest > 0) + self.levels

    @property
    def levels(self) -> list[str]:
        """Rewards that are commanded in quantile levels, for some task at least: all but length."""
        return list(dict.fromkeys(name for edges in self.edges.values() for name in edges))

    def rewards_of(self, task: str) -> list[str]:
        """Rewards that can be commanded for a task."""
        return [name for name in self.rewards if name == "length" or name in self.edges[task]]

    def levels_of(self, task: str) -> list[str]:
        """Rewards that are commanded in quantile levels for a task."""
        return [name for name in self.levels if name in self.edges[task]]

    def complete(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Annotated rows that have a value of every reward, of tasks for which every reward is commanded."""
        full = [task for task, edges in self.edges.items() if len(edges) == len(self.levels)]
        return rows[rows.task.isin(full)].dropna(subset=self.levels)

    def usual_lengths(self, task: str, most: int = 37) -> list[int]:
        """At most `most` lengths [words], evenly spaced over those that the task's train pairs usually have."""
        low, high = self.lengths.get(task, (min(4, self.longest), min(40, self.longest)))
        return np.linspace(low, high, min(most, high - low + 1)).round().astype(int).tolist()

    def tokens(self) -> list[str]:
        """Every special token of the codec."""
        levels = [token for name in self.levels for token in self.level_tokens(name)]
        lengths = [f"<|length:{i}|>" for i in range(1, self.longest + 1)]
        return [END_OF_PREFIX, *(f"<|task:{task}|>" for task in self.edges), *lengths, *levels]

    def level_tokens(self, name: str) -> list[str]:
        """The tokens of a reward's levels, from the lowest."""
        return [f"<|{name}:{i}|>" for i in range(self.bins)]

    def bin_of_value(self, task: str, name: str, value: float) -> int:
        """Level bin of one achieved reward, 0 to bins - 1."""
        return int(np.searchsorted(self.edges[task][name][1:-1], value, side="right"))

    def bins_of(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Level bins that pairs achieved, shape (pairs, levels) as floats; NaN where a reward has no value."""
        return self._of_rows(rows, lambda edges, values: np.searchsorted(edges[1:-1], values, side="right"))

    def achieved_levels(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Quantile levels 0..1 that pairs achieved, shape (pairs, levels); NaN where a reward has no value."""
        return self._of_rows(rows, lambda edges, values: np.interp(values, edges, np.linspace(0, 1, len(edges))))

    def _of_rows(self, rows: pd.DataFrame, measure: Callable[[list[float], np.ndarray], np.ndarray]) -> pd.DataFrame:
        import pandas as pd

        found = np.full((len(rows), len(self.levels)), np.nan)
        for task, places in rows.groupby("task").indices.items():
            for name, edges in self.edges[task].items():
                values = rows[name].to_numpy(float)[places]
                found[places, self.levels.index(name)] = np.where(np.isnan(values), np.nan, measure(edges, values))
        return pd.DataFrame(found, rows.index, self.levels)

    def bin_of_level(self, task: str, name: str, level: float) -> int:
        """Level token of a commanded quantile level; where quantiles coincide, the one that was trained."""
        return self.bin_of_value(task, name, self.edges[task][name][min(int(level * self.bins), self.bins - 1)])

    def feasible(self, command: Command, strict: bool = False) -> tuple[Command, str]:
        """The nearest command that the train split supports, and a note on what was changed, '' where nothing was.

        Supported is what a few train pairs achieved, or came next to, in all rewards that the command names at once.
        Raises: CommandError with strict=True when the command itself is not supported, naming the range.
        """
        self.check(command)
        task, length, levels = command.task, command.length, dict(command.levels)
        if length:
            length = min(length, self.longest)
        cell = {"length": length // LENGTH_BAND} if length else {}
        cell |= {name: self.bin_of_level(task, name, levels[name]) for name in self.edges[task] if name in levels}
        for name, place in (self._nearest_cell(task, cell) if levels else cell).items():
            if name == "length":
                first = place * LENGTH_BAND
                length = min(max(length, first, 1), first + LENGTH_BAND - 1, self.longest)
            elif place != cell[name]:
                levels[name] = self.level_of(place)
        nearest = Command(task, length, **levels)
        if nearest == command:
            return command, ""
        what = f"{command!r} is beyond what was trained (lengths 1 to {self.longest})"
        if strict:
            raise CommandError(f"{what}; the nearest is {nearest!r}")
        return nearest, f"{what}; asked for {nearest!r} instead"

    def _nearest_cell(self, task: str, cell: dict[str, int]) -> dict[str, int]:
        """The nearest combination with support; one level bin counts as much as one length band."""
        table = np.array(self.joint.get(task, ()))
        if not len(table):
            return cell
        columns = ["length", *self.edges[task]]
        cells, place = np.unique(table[:, [columns.index(name) for name in cell]], axis=0, return_inverse=True)
        counts = np.bincount(place.ravel(), weights=table[:, -1])
        apart = np.abs(cells - list(cell.values()))
        if counts[apart.max(1) <= 1].sum() >= SUPPORT:
            return cell
        support = (np.abs(cells[:, None] - cells).max(-1) <= 1) @ counts
        distances = np.where(support >= SUPPORT, apart.sum(1), np.inf)
        if np.isinf(distances).all():
            return cell
        return dict(zip(cell, cells[distances.argmin()].tolist(), strict=True))

    def check(self, command: Command) -> None:
        """Raises: CommandError for a task or a reward that the student does not know."""
        if command.task not in self.edges:
            raise CommandError(f"task={command.task!r} was not trained; this student knows {', '.join(self.edges)}")
        trained = self.rewards_of(command.task)
        for name in command.asked:
            if name not in self.rewards:
                raise CommandError(f"reward {name!r} is unknown to this student, which knows {', '.join(self.rewards)}")
            if name not in trained:
                known = ", ".join(trained)
                raise CommandError(f"reward {name!r} was not trained for task={command.task!r}, which knows {known}")

    def encode(self, command: Command) -> str:
        """The command as tokens. Raises: CommandError for a reward or length that the student does not know."""
        self.check(command)
        if command.length is not None and command.length > self.longest:
            raise CommandError(
                f"length={command.length} is beyond the longest prompt trained; allowed are 1 to {self.longest}"
            )
        bins = {name: self.bin_of_level(command.task, name, level) for name, level in command.levels.items()}
        return self._write(command.task, command.length, bins)

    def encode_achieved(self, rows: pd.DataFrame, left_open: Sequence[frozenset[str]] | None = None) -> list[str]:
        """Tokens of the rewards that annotated pairs achieved, one str per pair, less the rewards that are left open.

        `left_open` holds the names of those rewards for each pair.
        """
        bins, lengths = self.bins_of(rows).to_dict("records"), rows.length if self.longest else [0] * len(rows)
        left_open = left_open or [frozenset()] * len(rows)
        written = []
        for task, length, levels, without in zip(rows.task, lengths, bins, left_open, strict=True):
            kept = {name: int(k) for name, k in levels.items() if name not in without and k == k}
            written.append(self._write(task, None if "length" in without else int(length), kept))
        return written

    def count_down(self, prompt: str, every: int) -> str:
        """The prompt with the length still to come written before its first word and at every multiple of `every`.

        Agents of upside-down RL are told at each step how far they still have to go (arXiv 1912.02877). A language
        model that writes its own horizon as it goes need not count further than to the next one. Unchanged where
        `every` is 0 or lengths are not commanded.
        """
        if not every or not self.longest:
            return prompt
        written, cut = [], pieces(prompt)
        for k, piece in enumerate(cut):
            left = len(cut) - k
            shown = left <= self.longest and (k == 0 or left % every == 0)
            written += [f"<|length:{left}|>"] * shown + [piece]
        return "".join(written)

    def _write(self, task: str, length: int | None, bins: dict[str, int]) -> str:
        if self.form == "none":
            return f"<|task:{task}|>"
        values = {"length": length} if length else {}
        values |= {name: bins[name] for name in self.levels if name in bins}
        if self.form == "text":
            return f"<|task:{task}|>" + "".join(f" {name} {value}" for name, value in values.items()) + " "
        return f"<|task:{task}|>" + "".join(f"<|{name}:{value}|>" for name, value in values.items())

    def prefix(self, command: str, intent: str) -> str:
        """An encoded command, the intent and the token that ends the prefix; no intent smuggles in a special token."""
        intent = harmless(intent if self.cased else lower_intent(intent))
        if self.place == "last":
            task, end, rest = command.partition("|>")
            return f"{task}{end}{intent}{rest}{END_OF_PREFIX}"
        return f"{command}{intent}{END_OF_PREFIX}"

    def level_of(self, bin_index: int) -> float:
        """Middle of a level token's quantiles."""
        return (bin_index + 0.5) / self.bins

    def best_command(self, task: str) -> Command:
        """The command that served a task best on validation intents; everything open where none was looked for."""
        return Command(task, **self.best.get(task, {}))

    def save(self, folder: Path) -> None:
        """Write commands.json, so that the codec travels with the student."""
        write_json(folder / "commands.json", vars(self))

    @classmethod
    def load(cls, folder: Path) -> CommandCodec:
        """Read commands.json of a student's folder."""
        return cls(**json.loads((folder / "commands.json").read_text()))
