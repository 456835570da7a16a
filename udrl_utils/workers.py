"""Work side by side: on a CPU a small model gains little from more threads, and much from work on something else.

Threads of one product wait for each other at its end, and where other programs take turns on the cores they wait long.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

from udrl_utils.machine import device_and_dtype


def side_by_side(work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """What `work` returns for each item, in order; on a CPU as many at once as it has threads, each on one of them."""
    import torch

    threads = torch.get_num_threads()
    if len(items) < 2 or threads < 2 or device_and_dtype()[0] != "cpu":
        yield from map(work, items)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as workers:
            yield from workers.map(work, items)
    finally:
        torch.set_num_threads(threads)  # what a thread sets, later ones start with


def shares(most: int) -> tuple[int, int]:
    """How many of at most so many trainings to run side by side, on how many threads each: one at a time on a GPU."""
    import torch

    threads = torch.get_num_threads()
    count = max(1, min(most, threads)) if device_and_dtype()[0] == "cpu" else 1
    return count, threads // count


def pool(count: int, begin: Callable[..., None], *arguments: Any) -> ProcessPoolExecutor:
    """Processes that end when this one does, however it ends; each calls `begin` with the arguments first."""
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _start, (begin, arguments))


def _start(begin: Callable[..., None], arguments: tuple) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    begin(*arguments)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def quietly(threads: int) -> None:
    """Print nothing, and compute on so many threads."""
    import torch

    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    torch.set_num_threads(threads)
