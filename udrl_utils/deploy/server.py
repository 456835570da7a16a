"""The server: an exported student answers over HTTP, by OpenAI's protocol and in a plain form of its own.

In go JSON requests; out come prompts, whole or piece by piece. How batches form is not known here, and PyTorch is never
imported: achieved rewards, where they are asked for, are measured by a second process.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
import warnings
from collections.abc import AsyncIterator
from functools import lru_cache
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from udrl_utils.commands import Command, CommandError
from udrl_utils.deploy.batches import Batcher, Job
from udrl_utils.deploy.export import DeployedStudent
from udrl_utils.deploy.gate import Metrics
from udrl_utils.deploy.protocol import Asked, ChatRequest, Completion, PromptsRequest, Refused, StreamOptions
from udrl_utils.deploy.scoring import Scorer
from udrl_utils.engine import BROKEN_REDRAWS, drawn_again, seed_of_redraw
from udrl_utils.text import clean_intent, count_words, is_empty, spelled_out
from udrl_utils.word_lists import WordLists

MOST = 64  # prompts of one request


class Server:
    """Answers for one exported student. `queue`: prompts that may wait; `deadline`: of one request [s]."""

    def __init__(self, engine: DeployedStudent, name: str, scorer: Scorer | None, queue: int, deadline: float):
        self.engine, self.name, self.scorer, self.queue, self.deadline = engine, name, scorer, queue, deadline
        self.batcher = Batcher(engine, lambda size: self.metrics.batches.observe(size))
        self.metrics = Metrics(lambda: self.batcher.waiting)
        self.tasks, self.rewards = list(engine.codec.edges), engine.codec.rewards
        self.models = {name: None, **{f"{name}:{task}": task for task in self.tasks}}  # the task that each is for
        self.feasible = lru_cache(4096)(engine.codec.feasible)
        self.started = int(time.time())

    # ---- what is asked

    def command(self, asked: Asked, task: str | None = None) -> tuple[Command, str]:
        """The command of a request, the nearest one that was trained, and a note where it differs.

        Without a command it is the task's best one. Raises: Refused.
        """
        if asked.command is None and task:
            return self.engine.best_command(task), ""
        given = dict(asked.command or {})
        task = given.pop("task", None) or task
        if not isinstance(task, str):
            raise Refused(400, f"command.task is missing; allowed are {', '.join(self.tasks)}", "command.task")
        for name, value in given.items():
            if name not in self.rewards:
                known = ", ".join(["task", *self.rewards])
                raise Refused(400, f"command.{name:.40} is unknown; allowed are {known}", f"command.{name:.40}")
            if isinstance(value, bool) or not isinstance(value, int | float | None):
                raise Refused(400, f"command.{name}={value!r:.60} must be a number", f"command.{name}")
        try:
            return self.feasible(Command(task, **given))
        except CommandError as error:
            wrong = re.search(r"^(?:reward ')?(\w+)['=]", str(error))
            field = f"command.{wrong[1]}" if wrong else "command"
            raise Refused(400, f"{field}: {error}", field) from None

    def task_of(self, model: str) -> str | None:
        """The task that a model's name ends with, if any. Raises: Refused."""
        if model not in self.models:
            line = f"model={model!r:.80} is unknown; allowed are {', '.join(self.models)}"
            raise Refused(404, line, "model", "model_not_found")
        return self.models[model]

    def read(self, asked: Asked, intents: list[str], param: str) -> tuple[WordLists, list[str]]:
        """Words that no prompt may hold and that each must, and intents as the student reads them. Raises: Refused."""
        for intent in intents:
            if is_empty(intent):
                line = f"{param}: the intent {intent!r:.80} is empty: it has no letter, digit or emoji"
                raise Refused(400, line, param)
        try:
            wishes = WordLists(asked.banned, asked.keep)
        except CommandError as error:
            raise Refused(400, str(error), str(error).partition("=")[0]) from None
        return wishes, [wishes.added_to(spelled_out(intent)) for intent in intents]

    def job(self, asked: Asked, intents: list[str], command: Command, param: str, **options: Any) -> Job:
        """A job that writes the candidates of `n` prompts for each intent, as it is read; of a stream, one for each.

        Raises: Refused.
        """
        prefixes = []
        for intent in intents:
            with warnings.catch_warnings(record=True) as cut:
                prefixes.append(self.engine.tokens(self.engine.prefix(intent, command)))
            if cut:
                raise Refused(400, f"{param}: {cut[0].message}".replace(" reads the first", " reads at most"), param)
        if len(intents) * asked.n > MOST:
            line = f"n={asked.n}: {len(intents) * asked.n} prompts are asked for; at most {MOST} are written at once"
            raise Refused(400, line, "n")
        most = [self.engine.most(len(prefix), self.engine.longest(command)) for prefix in prefixes]
        if limit := most_tokens(asked):
            most = [min(limit, tokens) for tokens in most]
        how = self.engine.sampling_with(**asked.model_dump(include={"temperature", "candidates"}, exclude_none=True))
        drawn = asked.n if options else asked.n * self.engine.candidates(command, how)
        return Job(prefixes, most, drawn, how.temperature, asked.seed, **options)

    # ---- what is answered

    def submit(self, job: Job) -> None:
        """Queue a job. Raises: Refused when the queue is full or the server is going down."""
        if not self.batcher.ready:
            raise Refused(503, "the server is starting or going down", None, None, **{"Retry-After": "1"})
        most = self.queue * (self.engine.sampling.candidates if self.engine.codec.reads else 1)
        if self.batcher.waiting + job.size > most:
            self.metrics.refused.labels("queue").inc()
            waiting = f"{self.batcher.waiting} prompts are waiting, and at most {most} may"
            raise Refused(429, f"the server is busy: {waiting}", None, "queue_full", **{"Retry-After": "1"})
        self.batcher.submit(job)

    async def written(
        self, asked: Asked, wishes: WordLists, intents: list[str], command: Command, job: Job, request: Request
    ) -> list[str]:
        """The prompts of a job, each the nearest of its candidates to the command, for which alone the job stands then.

        Those with a fault are drawn again, before other work. Raises: Refused.
        """
        until = time.monotonic() + self.deadline

        def fault(k: int, text: str, tokens: list[int]) -> int:
            cut = len(tokens) == most_tokens(asked)  # the client has what it asked for
            return 0 if cut else self.engine.fault(text, intents[k // job.n], wishes)

        self.submit(job)
        await self.finished(job, request, until)
        texts = self.engine.texts(job.written)
        faults = {k: fault(k, text, job.written[k]) for k, text in enumerate(texts)}
        others = job.n // asked.n - 1
        if others:
            kept = await self.nearest(job, 1 + others, intents, command, texts, faults)
            job.n, job.written, job.cut = asked.n, [job.written[k] for k in kept], [job.cut[k] for k in kept]
            texts, faults = [texts[k] for k in kept], {row: faults[k] for row, k in enumerate(kept)}
        for number in range(BROKEN_REDRAWS if job.temperature else 0):
            faults = {k: wrong for k, wrong in faults.items() if drawn_again(wrong, others + number)}
            if not faults:
                break
            rows = [k // job.n for k in faults]
            seed = None if job.seed is None else seed_of_redraw(job.seed, number)
            again = Job([job.prefixes[r] for r in rows], [job.most[r] for r in rows], 1, job.temperature, seed)
            self.batcher.submit(again, first=True)
            await self.finished(again, request, until)
            drawn = zip(list(faults), self.engine.texts(again.written), again.written, again.cut, strict=True)
            for k, text, tokens, cut in drawn:
                if (found := fault(k, text, tokens)) <= faults[k]:
                    texts[k], job.written[k], job.cut[k], faults[k] = text, tokens, cut, found
        return [wishes.mended(text) for text in texts]

    async def nearest(
        self, job: Job, each: int, intents: list[str], command: Command, texts: list[str], faults: dict[int, int]
    ) -> list[int]:
        """Places of the prompts to keep: of `each` candidates, which follow each other, the nearest to the command."""
        starts = range(0, len(texts), each)
        requests = [(intents[k // job.n], command) for k in starts]
        drawn, wrong = ([[of[k + j] for j in range(each)] for k in starts] for of in (texts, faults))
        chosen = await self.batcher.aside(self.engine.nearest, requests, drawn, wrong)
        return [k + j for k, j in zip(starts, chosen, strict=True)]

    async def finished(self, job: Job, request: Request, until: float) -> None:
        """Wait until a job is written. Raises: Refused at `until`, a monotonic time, or when the client has left."""
        left = asyncio.create_task(client_left(request))
        try:
            await asyncio.wait((job.done, left), timeout=until - time.monotonic(), return_when=asyncio.FIRST_COMPLETED)
            if left.done():
                self.metrics.refused.labels("disconnect").inc()
                raise Refused(499, "the client has left")
            if not job.done.done():
                raise self.late()
            job.done.result()
        finally:
            left.cancel()
            job.cancelled = True
        self.count(job)

    def count(self, job: Job) -> None:
        self.metrics.tokens.labels("read").inc(sum(map(len, job.prefixes)) * job.n)
        self.metrics.tokens.labels("written").inc(sum(map(len, job.written)))

    async def complete(self, asked: Completion, intents: list[str], param: str, request: Request) -> Response:
        """A completion, whole or as a stream of events."""
        chat = isinstance(asked, ChatRequest)
        command, note = self.command(asked, self.task_of(asked.model))
        head = {"id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}", "created": int(time.time())}
        head |= {"model": asked.model, "command": {"task": command.task, **command.asked}}
        head |= {"note": note} if note else {}
        wishes, intents = self.read(asked, intents, param)
        if asked.stream:
            if asked.banned or asked.keep:
                raise Refused(400, "stream=true: what a client has read cannot be mended for banned and keep", "stream")
            tokens: asyncio.Queue[tuple[int, int | None]] = asyncio.Queue()
            job = self.job(asked, intents, command, param, on_token=lambda k, token: tokens.put_nowait((k, token)))
            self.submit(job)
            events = self.events(job, tokens, chat, asked.stream_options, head)
            return StreamingResponse(events, media_type="text/event-stream")
        job = self.job(asked, intents, command, param)
        texts = await self.written(asked, wishes, intents, command, job, request)
        choices = [
            choice(k, {"message": {"role": "assistant", "content": text}} if chat else {"text": text}, reason(job, k))
            for k, text in enumerate(texts)
        ]
        kind = "chat.completion" if chat else "text_completion"
        return JSONResponse({**head, "object": kind, "choices": choices, "usage": usage(job)})

    async def events(
        self, job: Job, tokens: asyncio.Queue, chat: bool, options: StreamOptions | None, head: dict[str, Any]
    ) -> AsyncIterator[bytes]:
        """Server-sent events: the pieces of each prompt, its end, and [DONE]."""
        usages = options is not None and options.include_usage
        head |= {"object": "chat.completion.chunk" if chat else "text_completion"} | ({"usage": None} if usages else {})

        def chunk(k: int, delta: dict[str, str], ended: str | None = None) -> bytes:
            content = {"delta": delta} if chat else {"text": delta.get("content", "")}
            return event({**head, "choices": [choice(k, content, ended)]})

        decoders, written, left = [self.engine.decoder() for _ in range(job.size)], [""] * job.size, job.size
        try:
            for k in range(job.size if chat else 0):
                yield chunk(k, {"role": "assistant", "content": ""})
            async with asyncio.timeout(self.deadline):
                while left:
                    k, token = await tokens.get()
                    if token is None:
                        if job.done.done():
                            job.done.result()  # raises what went wrong
                        left -= 1
                        yield chunk(k, {}, reason(job, k))
                    elif piece := decoders[k](token):
                        piece = piece if written[k] else piece.lstrip()
                        written[k] += piece
                        yield chunk(k, {"content": piece})
            if usages:
                yield event({**head, "choices": [], "usage": usage(job)})
            yield b"data: [DONE]\n\n"
        except TimeoutError:
            yield event({"error": self.late().error})
        finally:
            job.cancelled = True
            self.count(job)

    def late(self) -> Refused:
        self.metrics.refused.labels("deadline").inc()
        return Refused(504, f"no reply within the deadline of {self.deadline:g} s", code="deadline")

    async def prompts(self, asked: PromptsRequest, request: Request) -> dict[str, Any]:
        """The plain form: prompts, each with its length, and with the other achieved rewards on request."""
        if asked.rewards and self.scorer is None:
            raise Refused(400, "rewards=true: this server was started without --rewards", "rewards")
        command, note = self.command(asked)
        wishes, intents = self.read(asked, [asked.intent], "intent")
        job = self.job(asked, intents, command, "intent")
        texts = await self.written(asked, wishes, intents, command, job, request)
        if asked.rewards and self.scorer:
            achieved = await self.scorer.achieved(command.task, clean_intent(asked.intent), texts)
        else:
            achieved = [{"length": count_words(text)} for text in texts]
        return {
            "task": command.task,
            "command": command.asked,
            "note": note or None,
            "prompts": [{"prompt": text, "achieved": values} for text, values in zip(texts, achieved, strict=True)],
        }

    def listed(self, model: str) -> dict[str, Any]:
        return {"id": model, "object": "model", "created": self.started, "owned_by": "udrl"}


def choice(index: int, content: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, **content, "logprobs": None, "finish_reason": finish_reason}


def most_tokens(asked: Asked) -> int | None:
    """Tokens that a prompt may have, where the client limits them."""
    return getattr(asked, "max_completion_tokens", None) or getattr(asked, "max_tokens", None)


def reason(job: Job, k: int) -> str:
    return "length" if job.cut[k] else "stop"


def usage(job: Job) -> dict[str, int]:
    """Tokens that were read once per prefix, and written."""
    read, written = sum(map(len, job.prefixes)), sum(map(len, job.written))
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


async def client_left(request: Request) -> None:
    """Returns when the client closes its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
