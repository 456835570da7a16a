"""How much of the engine a server passes on: throughput and latency against clients at once, beside the engine alone.

    python benchmarks/serving.py [--student ready] [--seconds 60]

The server and its clients share the machine. The engine alone, CTranslate2 on as many threads, writes the same prompts
in one batch and one by one, in turns with the server. Every reply is checked. --seconds 600 makes it an endurance run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from served import Served, served

from udrl_utils.commands import Command
from udrl_utils.deploy.export import DeployedStudent, to_serve
from udrl_utils.student import ready_facts

TASK, LENGTH = "text_to_image", 12
COMMAND = Command(TASK, length=LENGTH)
TURNS = 5  # of the engine and the server, one after the other


def requests() -> list[tuple[str, bytes]]:
    """Intents, and the HTTP request of each."""
    made = []
    for intent in ready_facts()["intents"][TASK]:
        body = {"model": f"ready:{TASK}", "prompt": intent, "command": {"length": LENGTH}}
        data = json.dumps(body).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        made.append((intent, f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data))
    return made


async def client(port: int, asked: list[tuple[str, bytes]], until: float, seconds: list[float], kinds: Counter) -> None:
    """One client on one connection, which asks as soon as it has its reply."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    turn = 0
    while time.perf_counter() < until:
        began = time.perf_counter()
        writer.write(asked[turn % len(asked)][1])
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().split(b"content-length:")[1].split()[0])
        reply, status, turn = json.loads(await reader.readexactly(size)), int(head[9:12]), turn + 1
        kinds[status] += 1
        if status == 200:
            seconds.append(time.perf_counter() - began)
            [choice] = reply["choices"]
            honest = isinstance(choice["text"], str) and choice["finish_reason"] in ("stop", "length")
            kinds["broken"] += not (
                honest and reply["usage"]["completion_tokens"] > 0 and reply["command"]["length"] == LENGTH
            )
        else:
            kinds["broken"] += status != 429 or reply["error"]["code"] != "queue_full"
            await asyncio.sleep(0.01)
    writer.close()


async def load(port: int, clients: int, lasting: float) -> tuple[list[float], Counter]:
    """Latencies [s] and what was answered, by so many clients for so long."""
    asked, seconds, kinds, until = requests(), [], Counter(), time.perf_counter() + lasting
    turned = (asked[k % len(asked) :] + asked[: k % len(asked)] for k in range(clients))
    await asyncio.gather(*(client(port, each, until, seconds, kinds) for each in turned))
    return seconds, kinds


def engine_alone(engine: DeployedStudent, batch: int, lasting: float) -> list[float]:
    """Seconds per batch of the engine without a server."""
    generator, prefixes = (
        engine.generator(0),
        [engine.tokens(engine.prefix(intent, COMMAND)) for intent, _ in requests()],
    )
    how = {
        **engine.options(engine.sampling.temperature),
        "include_prompt_in_result": False,
        "max_length": 4 * LENGTH + 16,
    }
    seconds, until = [], time.perf_counter() + lasting
    while time.perf_counter() < until or len(seconds) < 3:
        began = time.perf_counter()
        written = generator.generate_batch([prefixes[(len(seconds) + k) % len(prefixes)] for k in range(batch)], **how)
        engine.texts([result.sequences_ids[0] for result in written])
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def measured(server: Served, clients: int, lasting: float) -> tuple[float, list[float], Counter]:
    """Requests per second, latencies, and what was answered. The clients have a process of their own."""
    program = [
        sys.executable,
        __file__,
        "--port",
        str(server.port),
        "--clients",
        str(clients),
        "--seconds",
        str(lasting),
    ]
    said = json.loads(subprocess.run(program, capture_output=True, text=True, check=True).stdout)
    return len(said["seconds"]) / lasting, said["seconds"], Counter(said["kinds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", default="ready")
    parser.add_argument("--seconds", type=float, default=60.0, help="of full load at the end")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--threads", type=int, default=0, help="of the processor, for both sides; 0 for all cores")
    parser.add_argument("--port", type=int, default=0, help="be the clients of a server on this port")
    options = parser.parse_args()
    if options.port:
        seconds, kinds = asyncio.run(load(options.port, options.clients, options.seconds))
        print(json.dumps({"seconds": seconds, "kinds": {str(kind): count for kind, count in kinds.items()}}))
        return
    folder, _, _ = to_serve(options.student)
    engine, turns = DeployedStudent.load(folder, options.threads), {"p50 at 1 client": [], "prompts/s": []}
    began = time.perf_counter()
    with served(folder, threads=options.threads) as server:
        server.ask("/readyz")
        ready, memory = time.perf_counter() - began, server.memory_mb()
        print(f"{os.cpu_count()} cores, {options.threads or os.cpu_count()} threads; prompts of {LENGTH} words")
        print(f"process start to ready {ready:.2f} s, {memory:.0f} MB")
        measured(server, options.clients, 3)  # warms up
        for _ in range(TURNS):
            one, (_, single, _) = engine_alone(engine, 1, 3), measured(server, 1, 3)
            turns["p50 at 1 client"].append((np.median(single), np.median(one)))
            many, (rate, _, _) = engine_alone(engine, options.clients, 4), measured(server, options.clients, 4)
            turns["prompts/s"].append((rate, options.clients / np.median(many)))
        first = server.memory_mb()
        rate, full, kinds = measured(server, options.clients, options.seconds)
        last = server.memory_mb()
        server.end(signal.SIGTERM)
    for name, pairs in turns.items():
        ratios = [ours / alone for ours, alone in pairs]
        ours, alone = np.median(pairs, axis=0)
        spread = f"{np.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
        print(f"{name}: server {ours:.3g}, engine alone {alone:.3g}, ratio {spread}")
    p50, p95 = (np.percentile(full, share) * 1e3 for share in (50, 95))
    print(
        f"{options.clients} clients, {options.seconds:.0f} s: {rate:.0f} prompts/s, p50 {p50:.0f} ms, p95 {p95:.0f} ms"
    )
    print(f"memory {first:.0f} MB before, {last:.0f} MB after; replies by status, and broken ones: {dict(kinds)}")


if __name__ == "__main__":
    main()
