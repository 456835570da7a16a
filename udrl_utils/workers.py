"""Workers: the shards of a stage made one after the other here, or side by side on the machines of a Ray cluster.

In go items, one per shard, and what makes one of them; out come the items as they are done. A worker writes the shard
and its journal to the run folder itself, which all machines see at the same path, so that a shard whose worker dies is
made again by another from what is there. Nothing here knows what a shard holds.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import socket
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import udrl_utils
from udrl_utils.errors import RunError, UserError, extra
from udrl_utils.machine import environment
from udrl_utils.runs import STAMP, RunFolder, is_sound, write_shard
from udrl_utils.settings import WorkersSettings
from udrl_utils.tasks import TASKS

if TYPE_CHECKING:
    import pyarrow

    from udrl_utils.teachers.server import Budget

    Build = Callable[[Budget, Callable[[], None]], Callable[..., None]]  # (budget, reopen) -> what makes an item

DEATHS = 3  # workers that may end while they make the same shard
KEYS = {"OPENAI_API_KEY"}  # of this environment that workers are told; they are written nowhere
STORE = 200_000_000  # bytes of a cluster of this machine for what is sent to workers; shards go through files
Item = TypeVar("Item", bound=tuple)


def spread(
    settings: WorkersSettings,
    run: RunFolder,
    stage: str,
    build: Build,
    items: Iterable[Item],
    lacks: Callable[[Path], int],
    budget: int | None = None,
    computes: bool = False,
) -> Iterator[Item]:
    """Make the items that are not made, each by `build(budget, reopen)(*item)`, and yield every item once it is there.

    An item begins with the path of its shard, which is made once it is sound and nothing of it `lacks`. On Ray, items
    come in the order in which they end, all workers share the budget, and `computes` says that a worker needs a GPU, or
    without GPUs as many processor threads as this process.

    Raises: what making an item raises, on Ray once the others under way have ended; RunError when the cluster cannot be
    used or a shard ends its workers again and again.
    """

    def made(item: Item) -> bool:
        return is_sound(item[0]) and not lacks(item[0])

    if settings.workers == "local":
        make = build(budget, partial(run.reopen, stage))
        for item in items:
            if not made(item):
                make(*item)
            yield item
        return
    todo: deque[Item] = deque()
    for item in items:
        if made(item):
            yield item
        else:
            todo.append(item)
    if todo:
        with _cluster(settings.ray_address) as ray:
            yield from _on_ray(ray, Plan(run.path, stage, build, budget), run, todo, computes)


class Maker(ABC):
    """Makes the shards of a stage, and makes finished ones again that lack replies; here, or on a worker.

    `reopen` is called before a shard is made or changed.
    """

    replies: ClassVar[str]  # what a finished shard may lack

    def __init__(self, reopen: Callable[[], None]):
        self.reopen = reopen
        self.again = True  # whether what finished shards lack can be asked for

    @staticmethod
    @abstractmethod
    def lacks(file: Path) -> int:
        """Replies that a finished shard lacks."""

    @abstractmethod
    def make(self, file: Path, *parts: Any) -> tuple[pyarrow.Table, dict[str, Any], int]:
        """The table of a shard, its notes, and how many replies it lacks."""

    def __call__(self, file: Path, *parts: Any) -> None:
        """Make a shard. Raises: what `make` raises, unless the shard was there and only lacks replies."""
        there = file.exists()
        if there and not self.again:
            return
        if not there:
            self.reopen()
        lacked = self.lacks(file) if there else 0
        try:
            table, notes, lacks = self.make(file, *parts)
        except RunError as error:
            if not there:
                raise
            self.again = False
            print(f"{file.name} stays without {lacked} {self.replies}: {error}", flush=True)
            return
        if not there or lacks < lacked:
            self.reopen()
            write_shard(file, table, **notes)


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster, which is one of this machine without an address.

    Raises: SettingsError when Ray is not installed; RunError when no cluster answers, or one of other versions.
    """
    with extra("scale", "parameter workers='ray'"):
        import ray
        import ray.util.scheduling_strategies
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    host, _, port = address.rpartition(":")
    own = {} if address else {"include_dashboard": False, "object_store_memory": STORE}
    try:
        if host:  # Ray itself tries for a minute
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address or "local", logging_level=logging.ERROR, **own)
    except (OSError, RuntimeError, ValueError) as error:
        said = _one_line(error)
        said += "" if "ersion mismatch" in said else "; `ray start` makes this machine one of a cluster"
        raise RunError(f"parameter ray_address={address!r}: the cluster cannot be used: {said}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


@dataclass
class Plan:
    """What every worker is told."""

    path: Path  # of the run
    stage: str
    build: Build
    budget: int | None
    ledger: Any = None
    threads: int = 0  # to compute on; 0 where nothing is computed
    tasks: dict[str, Any] = field(default_factory=lambda: dict(TASKS))
    home: str = field(default_factory=os.getcwd)
    keys: dict[str, str] = field(default_factory=lambda: {k: os.environ[k] for k in KEYS & os.environ.keys()})
    version: str = udrl_utils.__version__


class Ledger:
    """What workers share, on the machine of the notebook: the budget of requests, and run.json."""

    def __init__(self, plan: Plan):
        self.left, self.reopen = plan.budget or 0, partial(RunFolder(plan.path).reopen, plan.stage)

    def reopens(self) -> None:
        """Reopen the stage."""
        self.reopen()

    def take(self, requests: int) -> int:
        """Take requests, and say how many are left: below 0, and none are taken, for too many."""
        left = self.left - requests
        self.left = left if left >= 0 else self.left
        return left


class Worker:
    """A process of the cluster that makes one shard after the other; what they need is loaded once."""

    def __init__(self, plan: Plan):
        self.plan = plan

    def make(self, item: tuple) -> dict[str, Any]:
        """Make an item; returns the machine and its versions."""
        self.work(*item)
        return self.facts

    @cached_property
    def work(self) -> Callable[..., None]:
        """What makes an item. Raises: RunError when this machine has another version or does not see the run."""
        import ray

        plan, node, ours = self.plan, platform.node(), udrl_utils.__version__
        if plan.version != ours:
            raise RunError(f"node {node} has udrl_utils {ours}, the notebook {plan.version}")
        if not (plan.path / plan.stage / STAMP).exists():
            raise RunError(f"node {node} does not see {plan.path}: UDRL_OUTPUTS should be storage that all nodes share")
        self.facts = {"node": node, "ray": ray.__version__, "udrl_utils": ours, **environment()}
        if Path(plan.home).is_dir():
            os.chdir(plan.home)
        os.environ |= plan.keys
        TASKS.update(plan.tasks)
        if plan.threads:
            import torch

            torch.set_num_threads(plan.threads)
        get: Any = ray.get  # it has no types for one reference
        take: Budget = None if plan.budget is None else lambda requests: get(plan.ledger.take.remote(requests))
        return plan.build(take, lambda: get(plan.ledger.reopens.remote()))


def _on_ray(ray: Any, plan: Plan, run: RunFolder, todo: deque[Item], computes: bool) -> Iterator[Item]:
    """Hand items to workers, as many as the cluster has room for at each moment; those of dead workers to others."""
    need = {"CPU": 1}
    if computes:
        import torch

        plan.threads = torch.get_num_threads()  # sums differ in the last digit by the number of threads
        need = {"CPU": 1, "GPU": 1} if ray.cluster_resources().get("GPU") else {"CPU": plan.threads}
    near = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    here = near(ray.get_runtime_context().get_node_id(), soft=False)
    plan.ledger = ray.remote(Ledger).options(num_cpus=0, scheduling_strategy=here).remote(plan)
    start = ray.remote(Worker).options(num_cpus=need["CPU"], num_gpus=need.get("GPU", 0)).remote
    busy: dict[Any, tuple[Any, Item]] = {}
    deaths, nodes, failed = Counter(), {}, None
    try:
        while todo or busy:
            alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            room = sum(min(int(has.get(name, 0) // n) for name, n in need.items()) for has in alive)
            if not room and not busy:
                raise RunError(f"no node of the cluster has room for a worker, which takes {need}; see OMP_NUM_THREADS")
            while todo and len(busy) < room:
                worker, item = start(plan), todo.popleft()
                busy[worker.make.remote(item)] = worker, item
            for done in ray.wait(list(busy), timeout=2)[0]:
                worker, item = busy.pop(done)
                try:
                    facts = ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    failed = failed or _fault(error, item[0].name)
                except ray.exceptions.RayError as error:
                    ray.kill(worker)  # it may only be out of reach
                    print(f"a worker ended while it made {item[0].name}: {_one_line(error)}", flush=True)
                    todo.appendleft(item)
                    deaths[item[0]] += 1
                    if deaths[item[0]] == DEATHS:
                        failed = failed or _fault(error, item[0].name)
                else:
                    nodes.setdefault(facts["node"], {**facts, "workers": set()})["workers"].add(worker)
                    if todo:
                        after = todo.popleft()
                        busy[worker.make.remote(after)] = worker, after
                    else:
                        ray.kill(worker)
                    yield item
            if failed:
                todo.clear()
        run.nodes = [{**facts, "workers": len(facts["workers"])} for facts in nodes.values()]
        if failed:
            raise failed from None
    finally:
        for worker in [plan.ledger, *(worker for worker, _ in busy.values())]:
            ray.kill(worker)


def _fault(error: Any, shard: str) -> BaseException:
    """What ended the making of a shard, as an error that a user can mend where it is one."""
    cause, said = getattr(error, "cause", None), _one_line(error)
    if isinstance(cause, UserError):
        return cause
    if isinstance(cause, MemoryError) or re.search("OutOfMemory|memory pressure|running low on memory", said):
        mend = "start fewer workers per node (`ray start --num-cpus`), or lower shard_size"
        return RunError(f"{shard} cannot be made: a worker ran out of memory; {mend}")
    if cause is not None:
        return error
    return RunError(f"{shard} cannot be made: {DEATHS} workers ended while they made it; the last: {said}")


def _one_line(error: BaseException) -> str:
    """The beginning of what an error says."""
    return " ".join(str(error).split())[:400]
