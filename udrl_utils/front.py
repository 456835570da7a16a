"""The front: how far relevance and set diversity can be had together."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from udrl_utils.commands import Command
from udrl_utils.samples import Sampler

if TYPE_CHECKING:
    import pandas

# Short prompts stay nearer to their intent and farther from each other, which is why lengths are among them.
GRID = {"length": (None, 6, 8, 10), "relevance": (None, 0.45), "diversity": (0.75, 0.85)}
PATH = {"diversity": (0.05, 0.35, 0.55, 0.65, 0.75, 0.85, 0.95)}


def measure_front(
    sampler: Sampler, teacher: pandas.DataFrame, grid: dict[str, tuple], intents: int = 12, n: int = 4
) -> pandas.DataFrame:
    """What sets under each command of a grid, or the nearest feasible one, achieve.

    Ratios are to the teacher's means on the same intents.

    `teacher` holds annotated pairs; the first `intents` intents of each task that is commanded all of these rewards are
    used. One row per command and intent: task, command, intent, relevance, diversity (ratios). Empty when the student
    knows neither reward.
    """
    import pandas

    codec = sampler.student.codec
    names = [name for name in ("relevance", "diversity") if name in codec.rewards]
    if not names:
        return pandas.DataFrame()
    axes = {name: values for name, values in grid.items() if name in codec.rewards}
    chosen = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    both = [task for task, edges in codec.edges.items() if set(names) <= set(edges)]
    teacher = teacher[teacher.task.isin(both)].dropna(subset=names)
    ranks = teacher.groupby("task").intent.transform(lambda column: pandas.factorize(column)[0])
    teacher = teacher[ranks < intents]
    keys = list(teacher[["task", "intent"]].drop_duplicates().itertuples(index=False, name=None))
    requests = [(intent, codec.feasible(Command(task, **asked))[0]) for asked in chosen for task, intent in keys]
    scored = sampler.sample(requests, n)
    scored["command"] = scored.set.map(lambda number: requests[number][1])
    achieved = scored.groupby(["task", "command", "intent"], sort=False)[names].mean()
    ratios = achieved / teacher.groupby("task")[names].mean().reindex(achieved.index, level="task")
    return ratios.reset_index()


def best_commands(measured: pandas.DataFrame) -> tuple[dict[str, dict[str, float]], pandas.DataFrame]:
    """What each task's best command asks for, the one whose smaller ratio is highest; and the table that says so."""
    names = [name for name in ("relevance", "diversity") if name in measured]
    table = measured.groupby(["task", "command"], sort=False)[names].mean()
    table["smaller"] = table.min(axis=1)
    table = table.reset_index().sort_values(["task", "smaller"], ascending=[True, False], kind="stable")
    best = {row.task: row.command.asked for row in table.drop_duplicates("task").itertuples()}
    return best, table.reset_index(drop=True)


def hypervolume(points: list[tuple[float, float]]) -> float:
    """Area that points (both to be maximised) dominate, from the origin; negative coordinates dominate nothing."""
    area, reached = 0.0, 0.0
    for x, y in sorted(points, reverse=True):
        if x > 0 and y > reached:
            area += x * (y - reached)
            reached = y
    return area


def front_volume(front: pandas.DataFrame) -> float:
    """Hypervolume of a measured front: mean over tasks."""
    points = front.groupby(["task", "command"])[["relevance", "diversity"]].mean()
    areas = [hypervolume(list(rows.itertuples(index=False, name=None))) for _, rows in points.groupby("task")]
    return sum(areas) / len(areas)
