"""Processes beside this one: they share its threads, and end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from udrl_utils import machine

SLEEPER = """
import os, time
from udrl_utils.machine import pool

if __name__ == "__main__":
    with pool(1, os.getpid) as processes:
        print(processes.submit(os.getpid).result(), flush=True)
        processes.submit(time.sleep, 600)
        time.sleep(600)
"""


def test_a_process_that_works_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    parent = subprocess.Popen([sys.executable, tmp_path / "sleeper.py"], stdout=subprocess.PIPE, text=True)
    worker = psutil.Process(int(parent.stdout.readline()))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    worker.wait(timeout=20)
    assert not worker.is_running()


@pytest.mark.parametrize(
    ("device", "threads", "most", "expected"),
    [
        ("cpu", 2, 2, (2, 1)),
        ("cpu", 8, 2, (2, 4)),
        ("cpu", 16, 48, (16, 1)),
        ("cpu", 1, 2, (1, 1)),
        ("cuda", 16, 2, (1, 16)),
    ],
)
def test_threads_are_shared_out_on_a_cpu_only(
    monkeypatch: pytest.MonkeyPatch, device: str, threads: int, most: int, expected: tuple[int, int]
) -> None:
    monkeypatch.setattr(machine, "device_and_dtype", lambda: (device, torch.float32, "as this test says"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert machine.shares(most) == expected


def test_a_process_is_told_its_threads_and_prints_nothing(capfd: pytest.CaptureFixture) -> None:
    with machine.pool(1, machine.quietly, 1) as processes:
        assert processes.submit(torch.get_num_threads).result() == 1
        assert processes.submit(os.getpid).result() != os.getpid()
        processes.submit(print, "what nobody should see").result()
    assert capfd.readouterr().out == ""


def test_work_side_by_side_comes_in_order_on_one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "device_and_dtype", lambda: ("cpu", torch.float32, "as this test says"))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = list(machine.side_by_side(lambda k: (k, torch.get_num_threads()), range(5)))
        assert found == [(k, 1) for k in range(5)]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
