"""Processes that work beside this one: on a CPU small models gain more from another process than from more threads."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from udrl_utils.machine import device_and_dtype


def shares(most: int) -> list[int]:
    """Threads for each of at most so many trainings side by side: all of a CPU's, in equal parts; one on a GPU."""
    import torch

    threads = torch.get_num_threads()
    count = min(most, threads) if device_and_dtype()[0] == "cpu" else 1
    return [threads // count] * count


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
