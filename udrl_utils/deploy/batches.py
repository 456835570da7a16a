"""Batches that form by themselves: what arrives within a few milliseconds is written together.

In go the tokens of prefixes; out come the tokens of prompts, one by one or when they are complete. An event loop holds
the waiting requests, and one thread per core writes batches with CTranslate2. HTTP and commands are not known here.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from udrl_utils.deploy.export import PRECISIONS, DeployedStudent, import_ctranslate2

BATCH = 16  # prompts that one core writes at once; with more, each costs as much, and others wait longer
WINDOW = 0.002  # how long the first request of a batch waits for others [s]


@dataclass(eq=False)
class Job:
    """One request: `n` prompts for each of its prefixes, in the order of the prefixes.

    most: tokens that one prompt may have, for each prefix.
    temperature: 0 takes the most probable token at each step.
    seed: a request with a seed is written in a batch of its own, since a seed belongs to a batch; None for any.
    on_token: called in the event loop with the number of a prompt and a token, and with None when the prompt ends.
    Cancelled work is not begun; in a batch with an `on_token` it also ends.
    """

    prefixes: Sequence[Sequence[str]]
    most: Sequence[int]
    n: int
    temperature: float
    seed: int | None
    on_token: Callable[[int, int | None], None] | None = None

    def __post_init__(self) -> None:
        self.size = self.left = len(self.prefixes) * self.n  # prompts, and those that have not ended
        self.written: list[list[int]] = [[] for _ in range(self.size)]  # tokens of each prompt, without the end token
        self.cut = [False] * self.size  # whether a prompt reached the most tokens that it may have
        self.cancelled = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Batcher:
    """Writes jobs in batches. Used from one event loop; `start` and `stop` frame its work.

    on_batch: called in the event loop with the number of prompts of each batch.
    """

    def __init__(self, engine: DeployedStudent, on_batch: Callable[[int], Any]):
        self.engine, self.on_batch = engine, on_batch
        self.workers = engine.threads or os.cpu_count() or 1
        self.waiting = 0  # prompts
        self.ready = False
        self._jobs: deque[Job] = deque()
        self._seeding = threading.Lock()

    async def start(self) -> None:
        """Load the model, let every thread write one token, and begin to take jobs."""
        self._loop, self._arrived = asyncio.get_running_loop(), asyncio.Event()
        self._free = self.workers
        self._threads = ThreadPoolExecutor(self.workers)
        self._generator = import_ctranslate2().Generator(
            str(self.engine.folder),
            compute_type=PRECISIONS[self.engine.precision],
            inter_threads=self.workers,
            intra_threads=1,
        )
        self.engine.reader = self._generator  # one copy of the weights
        first, how = [[self.engine.codec.tokens()[0]]], self.engine.options(1.0)  # samples, before any seed is set
        write = partial(self._generator.generate_batch, first, max_length=1, **how)
        await asyncio.gather(*(self._loop.run_in_executor(self._threads, write) for _ in range(self.workers)))
        self._forming = asyncio.create_task(self._form_batches())
        self.ready = True

    async def stop(self) -> None:
        """Finish what was begun and what waits, then end."""
        self.ready = False
        while self._jobs or self._free < self.workers:
            await asyncio.sleep(0.01)
        self._forming.cancel()
        self._threads.shutdown()

    def submit(self, job: Job, first: bool = False) -> None:
        """Queue a job, last or first; its `done` is set when all its prompts are written."""
        (self._jobs.appendleft if first else self._jobs.append)(job)
        self.waiting += job.size
        self._arrived.set()

    async def aside(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """What a function returns, computed by one of the threads that write."""
        return await self._loop.run_in_executor(self._threads, work, *arguments)

    async def _form_batches(self) -> None:
        company = False  # whether the last batch had several requests; a client that is alone need not wait for others
        while True:
            self._arrived.clear()
            if not self._jobs or not self._free:
                await self._arrived.wait()
                if company:
                    await asyncio.sleep(WINDOW)
                continue
            # what waits is shared out among the cores that have nothing to do
            batch = self._next_batch(min(BATCH, -(-self.waiting // self._free)))
            if batch:
                self._free -= 1
                company = len(batch) > 1
                self.on_batch(sum(job.size for job in batch))
                self._loop.run_in_executor(self._threads, self._write, batch)

    def _next_batch(self, room: int) -> list[Job]:
        """The jobs that have waited longest and are sampled in the same way, of `room` prompts or little more."""
        batch: list[Job] = []
        others: deque[Job] = deque()
        while self._jobs and room > 0:
            job = self._jobs.popleft()
            if job.cancelled:
                self.waiting -= job.size
            elif not batch or (job.seed is batch[0].seed is None and job.temperature == batch[0].temperature):
                batch.append(job)
                room -= job.size
                self.waiting -= job.size
            else:
                others.append(job)
        self._jobs.extendleft(reversed(others))
        return batch

    def _write(self, batch: list[Job]) -> None:
        """Write a batch, in a thread."""
        try:
            if batch[0].seed is None:
                self._generate(self._generator, batch)
            else:
                with self._seeding:  # the seed is global, and counts for threads that have not sampled yet
                    self._generate(self.engine.generator(batch[0].seed), batch)
        except Exception as error:
            self._loop.call_soon_threadsafe(self._fail, batch, error)
        finally:
            self._loop.call_soon_threadsafe(self._release)

    def _generate(self, generator: Any, batch: list[Job]) -> None:
        rows = [(job, k) for job in batch for k in range(job.size)]
        end: Any = self.engine.end

        def take(job: Job, k: int, token: int) -> bool:
            """Take one token; True takes the prompt out of the batch."""
            if job.cancelled:
                return True
            if token != end:
                job.written[k].append(token)
                job.cut[k] = len(job.written[k]) >= job.most[k // job.n]
                if job.on_token:
                    self._loop.call_soon_threadsafe(job.on_token, k, token)
            if token != end and not job.cut[k]:
                return False
            job.left -= 1
            if job.on_token:
                self._loop.call_soon_threadsafe(job.on_token, k, None)
            if not job.left:
                self._loop.call_soon_threadsafe(job.done.set_result, None)
            return True

        def told(result: Any) -> bool:
            return take(*rows[result.batch_id], token=result.token_id)

        streamed = any(job.on_token for job in batch)
        found = generator.generate_batch(
            [job.prefixes[k // job.n] for job, k in rows],
            max_length=max(most for job in batch for most in job.most),
            include_prompt_in_result=False,
            callback=told if streamed else None,  # to be told of each token costs a fifth of the throughput
            **self.engine.options(batch[0].temperature),
        )
        if not streamed:
            for (job, k), result in zip(rows, found, strict=True):
                for token in (*result.sequences_ids[0], end):
                    if take(job, k, token):
                        break

    def _release(self) -> None:
        self._free += 1
        self._arrived.set()

    @staticmethod
    def _fail(batch: list[Job], error: Exception) -> None:
        for job in batch:
            if not job.done.done():
                job.done.set_exception(error)
            if job.on_token:
                for k in range(job.size):
                    job.on_token(k, None)
