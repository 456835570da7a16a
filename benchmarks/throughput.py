"""How near a served teacher comes to its bound: replies per second against concurrency over latency, in one run.

    python benchmarks/throughput.py

Without faults, and with a third of the requests going wrong. The bound counts every request that was made; beside it is
the share of what a client can reach that waits for a hanging server until its time-out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from faults.servers import ScriptedServer

from udrl_utils.teachers import OpenAITeacher
from udrl_utils.teachers.replies import Journal, Request
from udrl_utils.teachers.server import ChatClient

PATIENCE = 1.0  # seconds beyond the latency until a request is given up


def serve(latency: float, faulty: float, pipe) -> None:
    """Say the address of a scripted server, and answer until told to end."""
    with ScriptedServer(latency, faulty) as server:
        pipe.send(server.url)
        pipe.recv()


@contextmanager
def server_apart(latency: float, faulty: float) -> Iterator[str]:
    """Address of a scripted server in a process of its own, as a real one would be."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(latency, faulty, theirs))
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send("end")
        process.join()


def measured(requests: int, latency: float, concurrency: int, faulty: float) -> dict[str, float]:
    """Requests per second, and their share of concurrency / latency."""
    asked = [Request("text_to_image", f"koi pond {k}", 8) for k in range(requests)]
    with tempfile.TemporaryDirectory() as folder, server_apart(latency, faulty) as url:
        client = ChatClient("scripted", [url], concurrency, latency + PATIENCE)
        teacher = OpenAITeacher(client, 1.0, 0)
        teacher.write(asked[:1], Journal(Path(folder) / "first"))  # imports the client
        journal = Journal(Path(folder) / "journal")
        began = time.monotonic()
        teacher.write(asked, journal)
        passed, usage = time.monotonic() - began, journal.usage
    rate, waited = usage["requests"] / passed, PATIENCE * usage["failed_timeout"] / usage["requests"]
    return {
        "faulty": faulty,
        "requests": usage["requests"],
        "per second": rate,
        "share": rate * latency / concurrency,
        "share with time-outs": rate * (latency + waited) / concurrency,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--latency", type=float, default=0.5, help="seconds that the server takes")
    parser.add_argument("--concurrency", type=int, default=64)
    arguments = parser.parse_args()
    for faulty in (0.0, 0.33):
        print(json.dumps(measured(arguments.requests, arguments.latency, arguments.concurrency, faulty)), flush=True)


if __name__ == "__main__":
    main()
