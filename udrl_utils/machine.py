"""The machine that a run is made on: versions, processor, seeds, and the number format that suits it."""

from __future__ import annotations

import os
import platform
import random
import re
import shutil
import subprocess
import sys
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
    return (
        subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False).stdout.strip()
        or None
    )


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


def devices() -> list[str]:
    """Where models may compute side by side: every GPU, or the one device there is."""
    import torch

    count = torch.cuda.device_count()
    return [f"cuda:{k}" for k in range(count)] if count > 1 else [device_and_dtype()[0]]


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
    if " amx_bf16" in cpu_facts() or " avx512_bf16" in cpu_facts():
        return "cpu", torch.bfloat16, "no GPU; this processor multiplies bfloat16 twice as fast as float32"
    return "cpu", torch.float32, "no GPU, and a processor without bfloat16 arithmetic"
