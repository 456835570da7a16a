"""The machine: device and dtype with the reason, seeds, versions, and work side by side on a CPU's cores."""

from __future__ import annotations

import multiprocessing
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any


def environment() -> dict[str, Any]:
    """Versions, revision and machine, written beside every output."""
    packages = ("torch", "transformers", "trl", "datasets", "sentence-transformers", "papermill")
    return {
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "git_revision": git_revision(),
        "machine": ", ".join([processor(), f"{os.cpu_count()} cores", *gpus()]),
        "system": platform.platform(terse=True),
    }


def git_revision() -> str | None:
    """Commit of the checkout; None without git or without a commit."""
    if shutil.which("git") is None:
        return None
    command = ["git", "rev-parse", "--verify", "HEAD"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def cpu_facts() -> str:
    """What Linux says of its processors; empty elsewhere."""
    file = Path("/proc/cpuinfo")
    return file.read_text() if file.exists() else ""


def processor() -> str:
    """Name of the processor, as the system gives it."""
    found = re.search(r"model name\s*:\s*(.+)", cpu_facts())
    return found.group(1) if found else platform.processor() or platform.machine()


def gpus() -> list[str]:
    """Names of the GPUs; none where nothing was computed with torch, which is not loaded just to ask it."""
    if "torch" not in sys.modules:
        return []
    import torch

    return [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]


def peak_memory() -> float:
    """The most memory that this process has held [bytes]; NaN where the system does not say."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts, on Linux, what the parent held when it started this process
        return 1024.0 * int(re.search(r"VmHWM:\s*(\d+)", status.read_text()).group(1))
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # in bytes on macOS


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def device_and_dtype() -> tuple[str, Any, str]:
    """Device and number format to compute in: (device, torch dtype, reason in words)."""
    import torch

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        if torch.cuda.is_bf16_supported():
            return "cuda", torch.bfloat16, f"{name} computes in bfloat16"
        return "cuda", torch.float16, f"{name} has no bfloat16"
    if torch.backends.mps.is_available():
        return "mps", torch.float32, "Apple GPU; float32 is the format that trains safely there"
    if " amx_bf16" in cpu_facts():  # AVX-512 has bfloat16 too, but slower than float32 (docs/log.md)
        return "cpu", torch.bfloat16, "no GPU; this processor multiplies matrices of bfloat16 faster than of float32"
    return "cpu", torch.float32, "no GPU, and a processor without matrix units for bfloat16"


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
