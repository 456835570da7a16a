"""How much of the engine a server passes on, and whether it endures: beside the engine alone, and under full load.

    python benchmarks/serving.py [--student ready] [--seconds 600]

The server and its clients share the machine. The engine alone, CTranslate2 on as many threads, writes the same prompts
by `DeployedStudent.generate`, one batch per thread and one by one, in turns with the server; both draw again what has a
fault. Every reply is checked. The exit code is 1 when one of them is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from openai.types import Completion

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from served import Served, served

from udrl_utils.commands import Command
from udrl_utils.deploy.export import PRECISIONS, DeployedStudent, import_ctranslate2, to_serve
from udrl_utils.student import ready_facts

TASK, LENGTH = "text_to_image", 12
COMMAND = Command(TASK, length=LENGTH)
INTENTS = ready_facts()["intents"][TASK]
MODEL = f"ready:{TASK}"
IMPORTS = "import udrl_utils.deploy.app, ctranslate2, tokenizers, uvloop"
TURNS = 5  # of the engine and the server, one after the other


def request(intent: str) -> bytes:
    """The HTTP request of one prompt."""
    data = json.dumps({"model": MODEL, "prompt": intent, "command": {"length": LENGTH}}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def kind_of(status: int, head: bytes, reply: dict[str, Any], seen: set[str]) -> str:
    """What a reply is: "answered" or "refused" when it has all that the protocol promises, else "wrong"."""
    if status == 429:
        return "refused" if reply["error"]["code"] == "queue_full" and b"retry-after: " in head else "wrong"
    if status != 200:
        return f"status {status}"
    Completion.model_validate(reply, strict=True)
    [choice], usage, text = reply["choices"], reply["usage"], reply["choices"][0]["text"]
    right = (
        reply["id"] not in seen
        and (reply["object"], reply["model"]) == ("text_completion", MODEL)
        and reply["command"] == {"task": TASK, "length": LENGTH}
        and choice["index"] == 0
        and choice["finish_reason"] in ("stop", "length")
        and text
        and text == " ".join(text.split())
        and "<|" not in text
        and usage["completion_tokens"] > 0
        and usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    )
    seen.add(reply["id"])
    return "answered" if right else "wrong"


async def client(port: int, asked: list[bytes], until: float, seconds: list[float], kinds: Counter, seen: set) -> None:
    """One client on one connection, which asks as soon as it has its reply."""
    writer = None
    for data in itertools.cycle(asked):
        began = time.perf_counter()
        if began >= until:
            break
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(data)
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().split(b"content-length:")[1].split()[0])
            kind = kind_of(int(head[9:12]), head, json.loads(await reader.readexactly(size)), seen)
        except Exception as error:  # counted, whatever it is
            kind, writer = f"{type(error).__name__}: {error}"[:200], None
        kinds[kind] += 1
        if kind == "answered":
            seconds.append(time.perf_counter() - began)
        else:
            await asyncio.sleep(0.01)
    if writer:
        writer.close()


async def load(port: int, clients: int, lasting: float) -> tuple[list[float], Counter]:
    """Latencies [s] and what was answered, by so many clients for so long."""
    asked, seconds, kinds, seen = list(map(request, INTENTS)), [], Counter(), set()
    until = time.perf_counter() + lasting
    turned = (asked[k % len(asked) :] + asked[: k % len(asked)] for k in range(clients))
    await asyncio.gather(*(client(port, each, until, seconds, kinds, seen) for each in turned))
    return seconds, kinds


def measured(server: Served, clients: int, lasting: float) -> tuple[float, list[float], Counter]:
    """Requests per second, latencies, and what was answered. The clients have a process of their own."""
    options = {"--port": server.port, "--clients": clients, "--seconds": lasting}
    program = [sys.executable, __file__, *(str(part) for option in options.items() for part in option)]
    said = json.loads(subprocess.run(program, capture_output=True, text=True, check=True).stdout)
    return len(said["seconds"]) / lasting, said["seconds"], Counter(said["kinds"])


class Alone:
    """The engine without a server: loaded once, with a batch for each of its threads, as the server has it."""

    def __init__(self, folder: Path, threads: int):
        self.engine, self.workers = DeployedStudent.load(folder, threads), threads or os.cpu_count() or 1
        self.threads, kind = ThreadPoolExecutor(self.workers), PRECISIONS[self.engine.precision]
        how = {"compute_type": kind, "inter_threads": self.workers, "intra_threads": 1}
        generator = import_ctranslate2().Generator(str(folder), **how)
        self.engine.generator = lambda seed: generator

    def seconds(self, prompts: int, lasting: float) -> list[float]:
        """Seconds that it takes to write so many prompts, again and again for so long."""
        found, until = [], time.perf_counter() + lasting
        while time.perf_counter() < until or len(found) < 3:
            first, began = len(found) * prompts, time.perf_counter()
            intents = [INTENTS[k % len(INTENTS)] for k in range(first, first + prompts)]
            parts = filter(None, (intents[k :: self.workers] for k in range(self.workers)))
            list(self.threads.map(lambda part: self.engine.generate(part, COMMAND), parts))
            found.append(time.perf_counter() - began)
        return found[1:]


def cold_starts(folder: Path, threads: int) -> tuple[float, float]:
    """Seconds from the start of a process to the end of its imports, and to a server's first answer: medians of 3."""
    imported, answered = [], []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", IMPORTS], check=True)
        imported.append(time.perf_counter() - began)
        began = time.perf_counter()
        with served(folder, threads=threads) as server:
            greedy(server, INTENTS[0])
            answered.append(time.perf_counter() - began)
    return float(np.median(imported)), float(np.median(answered))


def greedy(server: Served, intent: str) -> Any:
    """The most probable prompt, which is always the same; None where the queue is full."""
    asked = {"model": MODEL, "prompt": intent, "command": {"length": LENGTH}, "temperature": 0}
    return server.ask("/v1/completions", asked)[1].get("choices")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", default="ready")
    parser.add_argument("--seconds", type=float, default=60.0, help="of full load at the end")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--threads", type=int, default=0, help="of the processor, for both sides; 0 for all cores")
    parser.add_argument("--port", type=int, default=0, help="be the clients of a server on this port")
    options = parser.parse_args()
    clients, lasting = options.clients, options.seconds
    if options.port:
        seconds, kinds = asyncio.run(load(options.port, clients, lasting))
        print(json.dumps({"seconds": seconds, "kinds": kinds}))
        return 0
    folder, _, _ = to_serve(options.student)
    alone, turns = Alone(folder, options.threads), {"p50 at 1 client [ms]": [], f"prompts/s at {clients}": []}
    busy = os.getloadavg()[0]  # far above 0, something else runs
    print(f"{os.cpu_count()} cores, {alone.workers} threads; prompts of {LENGTH} words; load before {busy:.1f}")
    imported, answered = cold_starts(folder, options.threads)
    print(f"\nprocess start to imports {imported:.2f} s, to the first answer {answered:.2f} s")

    with served(folder, threads=options.threads) as server:
        expected = {intent: greedy(server, intent) for intent in INTENTS}
        at_first = server.memory_mb()
        measured(server, clients, 3)  # warms up
        for _ in range(TURNS):
            one, (_, single, _) = alone.seconds(1, 3), measured(server, 1, 3)
            turns["p50 at 1 client [ms]"].append((np.median(single) * 1e3, np.median(one) * 1e3))
            many, (rate, _, _) = alone.seconds(clients, 4), measured(server, clients, 4)
            turns[f"prompts/s at {clients}"].append((rate, clients / np.mean(many)))
        memory, same = [], Counter()
        with ThreadPoolExecutor(1) as beside:
            full = beside.submit(measured, server, clients, lasting)
            for intent in itertools.cycle(INTENTS):  # one more client: is its answer what it was without the others?
                if full.done():
                    break
                if answer := greedy(server, intent):
                    same[answer == expected[intent]] += 1
                memory.append(server.memory_mb())
                time.sleep(1)
        rate, latencies, kinds = full.result()
        server.end()
        printed = server.process.stdout.read()

    print("\n| medians of 5 turns [lowest, highest] | server | engine alone | ratio |\n|---|---|---|---|")
    for name, pairs in turns.items():
        (ours, engine), ratios = np.median(pairs, axis=0), [ours / engine for ours, engine in pairs]
        spread = f"{np.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
        print(f"| {name} | {ours:.3g} | {engine:.3g} | {spread} |")
    wrong = {kind: n for kind, n in kinds.items() if kind not in ("answered", "refused")}
    tenth = -(-len(memory) // 10)
    begun, ended = np.mean(memory[:tenth]), np.mean(memory[-tenth:])
    p50, p95 = (np.percentile(latencies, share) * 1e3 for share in (50, 95))
    rows = {
        "replies checked": f"{kinds.total():,}",
        "of them answered": f"{kinds['answered']:,}",
        "refused with 429": f"{kinds['refused']:,}",
        "wrong, or other errors": wrong or 0,
        "greedy answers as they are without load, and not so": f"{same[True]:,}, {same[False]:,}",
        "prompts/s, p50, p95": f"{rate:.0f}, {p50:.0f} ms, {p95:.0f} ms",
        "memory before any load, highest": f"{at_first:.0f} MB, {max(memory):.0f} MB",
        "memory, first and last tenth of the time": f"{begun:.0f} MB, {ended:.0f} MB, {ended / begun - 1:+.1%}",
        "what the server printed": printed or "nothing",
    }
    print(f"\n| {lasting:.0f} s, {clients} clients | |\n|---|---|")
    for row in rows.items():
        print("| {} | {} |".format(*row))
    return int(bool(wrong or same[False] or printed))


if __name__ == "__main__":
    sys.exit(main())
