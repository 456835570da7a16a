"""Workers: the shards of a stage made one after the other here, or side by side on the machines of a Ray cluster.

In go items, one per shard, and what makes one of them; out come the items as they are done. A worker writes the shard
and its journal to the run folder itself, which all machines see at the same path, so that a shard whose worker dies is
made again by another from what is there. Nothing here knows what a shard holds.
"""

from __future__ import annotations

import os
import platform
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import udrl_utils
from udrl_utils.errors import RunError, SettingsError, UserError, extra
from udrl_utils.machine import environment
from udrl_utils.runs import STAMP, RunFolder
from udrl_utils.settings import WorkersSettings
from udrl_utils.tasks import TASKS

DEATHS = 3  # workers in a row that may end while they make one shard
STORE = 200_000_000  # bytes of a cluster of this machine for what is sent to workers; shards go through files
Item = TypeVar("Item", bound=tuple)
Budget = int | Callable[[int], int] | None  # requests that are left, or what takes some and says how many are left
Build = Callable[[Budget, Callable[[], None]], Callable[..., None]]  # (budget, reopen) -> what makes an item


def spread(
    settings: WorkersSettings,
    run: RunFolder,
    stage: str,
    build: Build,
    items: Iterable[Item],
    made: Callable[[Item], bool],
    budget: int | None = None,
    computes: bool = False,
) -> Iterator[Item]:
    """Make the items that are not made, each by `build(budget, reopen)(*item)`, and yield every item once it is there.

    An item begins with the path of its shard. On Ray, items come in the order in which they end, all workers share the
    budget, and `computes` says that a worker needs a GPU, or without GPUs as many processor threads as this process.

    Raises: what making an item raises here, once the others under way have ended; RunError when the cluster cannot be
    used or a shard ends its workers again and again.
    """
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
        ours = connect(settings.ray_address)
        try:
            yield from _spread_on_ray(Plan(run.path, stage, build, budget), run, todo, computes)
        finally:
            if ours:
                import ray

                ray.shutdown()


def connect(address: str) -> bool:
    """Join a Ray cluster, or start one of this machine; whether this call has done so.

    Raises: SettingsError when Ray is not installed; RunError when no cluster answers, or one of other versions.
    """
    with extra("scale", "parameter workers='ray'"):
        import ray
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    host, _, port = address.rpartition(":")
    own = {} if address else {"include_dashboard": False, "object_store_memory": STORE}
    try:
        if host:
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address or "local", logging_level="ERROR", **own)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        said = " ".join(str(error).split())[:400]
        hint = "" if "ersion mismatch" in said else "; `ray start --head` starts a cluster, and this machine must be in it"
        raise RunError(f"parameter ray_address={address!r}: the cluster cannot be used: {said}{hint}") from None
    return True


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
    key: str | None = field(default_factory=lambda: os.environ.get("OPENAI_API_KEY"))
    version: str = udrl_utils.__version__


class Ledger:
    """What workers share, on the machine of the notebook: the budget of requests, and run.json."""

    def __init__(self, plan: Plan):
        self.run, self.stage, self.left = RunFolder(plan.path), plan.stage, plan.budget or 0

    def spend(self, requests: int) -> int:
        """Requests that are left after these; below 0, and none are taken, where they are too many."""
        left = self.left - requests
        self.left = left if left >= 0 else self.left
        return left

    def reopen(self) -> None:
        """As RunFolder.reopen."""
        self.run.reopen(self.stage)


class Worker:
    """A process of the cluster that makes one shard after the other; what they need is loaded once."""

    def __init__(self, plan: Plan):
        self.plan = plan

    def make(self, item: tuple) -> dict[str, Any]:
        """Make an item; returns the worker's machine and versions."""
        self.work(*item)
        return self.facts

    @cached_property
    def work(self) -> Callable[..., None]:
        import ray

        plan, node = self.plan, platform.node()
        if plan.version != udrl_utils.__version__:
            raise RunError(f"node {node} has udrl_utils {udrl_utils.__version__}, the notebook {plan.version}")
        if not (plan.path / plan.stage / STAMP).exists():
            raise RunError(f"node {node} does not see {plan.path}: UDRL_OUTPUTS should be storage that all nodes share")
        if Path(plan.home).is_dir():
            os.chdir(plan.home)
        if plan.key is not None:
            os.environ["OPENAI_API_KEY"] = plan.key
        TASKS.update(plan.tasks)
        if plan.threads:
            import torch

            torch.set_num_threads(plan.threads)
        spend = None if plan.budget is None else lambda requests: ray.get(plan.ledger.spend.remote(requests))
        return plan.build(spend, lambda: ray.get(plan.ledger.reopen.remote()))

    @cached_property
    def facts(self) -> dict[str, Any]:
        import ray

        return {"node": platform.node(), "ray": ray.__version__, "udrl_utils": udrl_utils.__version__, **environment()}


def _spread_on_ray(plan: Plan, run: RunFolder, todo: deque[Item], computes: bool) -> Iterator[Item]:
    """Hand the items to workers, as many as the cluster has room for at each moment."""
    import ray

    need = {"CPU": 1}
    if computes:
        import torch

        plan.threads = torch.get_num_threads()  # sums differ in the last digit by the number of threads
        need = {"CPU": 1, "GPU": 1} if ray.cluster_resources().get("GPU") else {"CPU": plan.threads}
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), False)
    plan.ledger = ray.remote(Ledger).options(num_cpus=0, scheduling_strategy=here).remote(plan)
    start = ray.remote(Worker).options(num_cpus=need["CPU"], num_gpus=need.get("GPU", 0)).remote
    busy: dict[Any, tuple[Any, Item]] = {}
    deaths, failed, nodes = Counter(), None, {}
    try:
        while todo or busy:
            room = sum(
                min(int(node["Resources"].get(name, 0) // n) for name, n in need.items())
                for node in ray.nodes()
                if node["Alive"]
            )
            if not room and not busy:
                wanted = ", ".join(f"{n} {name}" for name, n in need.items())
                raise RunError(f"no node of the cluster has {wanted} for a worker; OMP_NUM_THREADS sets its threads")
            while todo and len(busy) < room:
                worker, item = start(plan), todo.popleft()
                busy[worker.make.remote(item)] = worker, item
            for done in ray.wait(list(busy), timeout=2)[0]:
                worker, item = busy.pop(done)
                try:
                    facts = ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    failed = failed or _mendable(error, item)
                    todo.clear()
                    continue
                except ray.exceptions.RayError as error:
                    ray.kill(worker)  # it may only be out of reach
                    deaths[item[0]] += 1
                    said = " ".join(str(error).split())
                    print(f"a worker ended while it made {item[0].name}: {said[:300]}", flush=True)
                    if deaths[item[0]] == DEATHS:
                        failed = failed or RunError(_ended(item, said))
                        todo.clear()
                    elif not failed:
                        todo.appendleft(item)
                    continue
                nodes.setdefault(facts["node"], {**facts, "workers": set()})["workers"].add(worker)
                if todo:
                    after = todo.popleft()
                    busy[worker.make.remote(after)] = worker, after
                else:
                    ray.kill(worker)
                yield item
        if failed:
            raise failed from None
        run.nodes = [{**facts, "workers": len(facts["workers"])} for facts in nodes.values()]
    finally:
        for worker, _ in busy.values():
            ray.kill(worker)
        ray.kill(plan.ledger)


def _mendable(error: Any, item: tuple) -> BaseException:
    """What a worker raised, as an error that a user can mend where it is one."""
    if isinstance(error.cause, UserError):
        return error.cause
    if isinstance(error.cause, MemoryError) or "OutOfMemory" in type(error.cause).__name__:
        return RunError(_ended(item, f"out of memory: {error.cause}"))
    return error


def _ended(item: tuple, said: str) -> str:
    mend = "give each worker more memory (`ray start --num-cpus`: fewer per node), or lower shard_size"
    if "memory" in said.lower():
        return f"{item[0].name}: its workers ran out of memory; {mend}"
    return f"{item[0].name}: {DEATHS} workers ended while they made it; the last: {said[:300]}"
