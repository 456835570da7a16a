"""The server: an exported student answers over HTTP, by OpenAI's protocol and in a plain form of its own.

In go JSON requests; out come prompts, whole or piece by piece. How batches form is not known here, and PyTorch is never
imported: achieved rewards, where they are asked for, are measured by a second process.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import socket
import sys
import time
import uuid
import warnings
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from prometheus_client import generate_latest
from starlette.exceptions import HTTPException

from udrl_utils.commands import Command, CommandError
from udrl_utils.deploy.batches import BATCH, Batcher, Job, QueueFull
from udrl_utils.deploy.export import DeployedStudent
from udrl_utils.deploy.gate import Gate, Metrics
from udrl_utils.deploy.page import server_page
from udrl_utils.deploy.protocol import (
    Asked,
    ChatRequest,
    Completion,
    PromptsRequest,
    Refused,
    StreamOptions,
    TextRequest,
    choice,
    event,
    intent_of,
    reason,
    refusal_of,
    usage,
)
from udrl_utils.deploy.scoring import Scorer
from udrl_utils.text import clean_intent, words


class Server:
    """Answers for one exported student."""

    def __init__(
        self, engine: DeployedStudent, name: str, scorer: Scorer | None = None, queue: int = 256, deadline: float = 30.0
    ):
        self.engine, self.name, self.scorer, self.deadline = engine, name, scorer, deadline
        self.batcher = Batcher(engine, queue, lambda size: self.metrics.batches.observe(size))
        self.metrics = Metrics(lambda: self.batcher.waiting)
        self.tasks, self.rewards = list(engine.codec.edges), engine.codec.rewards
        self.models = [name, *(f"{name}:{task}" for task in self.tasks)]
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
        return model.removeprefix(self.name).removeprefix(":") or None

    def job(self, asked: Asked, intents: list[str], command: Command, param: str, **options: Any) -> Job:
        """A job that writes `n` prompts for each intent. Raises: Refused."""
        prefixes = []
        for intent in intents:
            if not words(clean_intent(intent)):
                raise Refused(400, f"{param}: the intent {intent!r:.80} is empty: it has no letter or digit", param)
            with warnings.catch_warnings(record=True) as cut:
                prefixes.append(self.engine.tokens(self.engine.prefix(intent, command)))
            if cut:
                raise Refused(400, f"{param}: {cut[0].message}".replace(" reads the first", " reads at most"), param)
        if len(intents) * asked.n > BATCH:
            line = f"n={asked.n}: {len(intents) * asked.n} prompts are asked for; at most {BATCH} are written at once"
            raise Refused(400, line, "n")
        most = [self.engine.most(len(prefix), command) for prefix in prefixes]
        if limit := getattr(asked, "max_completion_tokens", None) or getattr(asked, "max_tokens", None):
            most = [min(limit, tokens) for tokens in most]
        temperature = self.engine.sampling.temperature if asked.temperature is None else asked.temperature
        return Job(prefixes, most, asked.n, temperature, asked.seed, **options)

    # ---- what is answered

    def submit(self, job: Job) -> None:
        """Queue a job. Raises: Refused when the queue is full or the server is going down."""
        if not self.batcher.ready:
            raise Refused(503, "the server is starting or going down", None, None, **{"Retry-After": "1"})
        try:
            self.batcher.submit(job)
        except QueueFull:
            self.metrics.refused.labels("queue").inc()
            waiting = f"{self.batcher.waiting} prompts are waiting, and at most {self.batcher.most_waiting} may"
            raise Refused(429, f"the server is busy: {waiting}", None, "queue_full", **{"Retry-After": "1"}) from None

    async def written(self, job: Job, request: Request) -> list[str]:
        """The prompts of a job. Raises: Refused when the deadline passes or the client has left."""
        self.submit(job)
        left = asyncio.create_task(client_left(request))
        try:
            await asyncio.wait((job.done, left), timeout=self.deadline, return_when=asyncio.FIRST_COMPLETED)
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
        return self.engine.texts(job.written)

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
        if asked.stream:
            tokens: asyncio.Queue[tuple[int, int | None]] = asyncio.Queue()
            job = self.job(asked, intents, command, param, on_token=lambda k, token: tokens.put_nowait((k, token)))
            self.submit(job)
            events = self.events(job, tokens, chat, asked.stream_options, head)
            return StreamingResponse(events, media_type="text/event-stream")
        job = self.job(asked, intents, command, param)
        texts = await self.written(job, request)
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
        texts = await self.written(self.job(asked, [asked.intent], command, "intent"), request)
        achieved: Sequence[dict[str, Any]] = [{"length": len(text.split())} for text in texts]
        if asked.rewards and self.scorer is not None:
            achieved = await self.scorer.achieved(command.task, clean_intent(asked.intent), texts)
        return {
            "task": command.task,
            "command": command.asked,
            "note": note or None,
            "prompts": [{"prompt": text, "achieved": values} for text, values in zip(texts, achieved, strict=True)],
        }

    def listed(self, model: str) -> dict[str, Any]:
        return {"id": model, "object": "model", "created": self.started, "owned_by": "udrl"}


async def client_left(request: Request) -> None:
    """Returns when the client closes its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def make_app(server: Server, keys: Sequence[str] = ()) -> FastAPI:
    """The HTTP application of a server. `keys`: API keys, one of which /v1/ asks for; none asks for none."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await server.batcher.start()
        yield
        await server.batcher.stop()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, strict_content_type=False)
    app.add_middleware(Gate, metrics=server.metrics, keys=keys)
    page = server_page(server.engine, server.name, rewards=server.scorer is not None)

    @app.post("/v1/chat/completions")
    async def chat(asked: ChatRequest, request: Request) -> Response:
        return await server.complete(asked, [intent_of(asked.messages)], "messages", request)

    @app.post("/v1/completions")
    async def completions(asked: TextRequest, request: Request) -> Response:
        intents = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
        if not intents:
            raise Refused(400, "prompt=[] is empty", "prompt")
        return await server.complete(asked, intents, "prompt", request)

    @app.post("/v1/prompts")
    async def prompts(asked: PromptsRequest, request: Request) -> Response:
        return JSONResponse(await server.prompts(asked, request))

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [server.listed(model) for model in server.models]}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        server.task_of(model)
        return server.listed(model)

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def ready() -> Response:
        return JSONResponse({"ready": server.batcher.ready}, 200 if server.batcher.ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(server.metrics.registry), media_type="text/plain; version=0.0.4")

    @app.get("/")
    async def root() -> Response:
        return HTMLResponse(page)

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return refusal_of(error).response()

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        line = f"{request.method} {request.url.path[:80]}: {error.detail}"
        return Refused(error.status_code, "the body is not JSON" if error.status_code == 400 else line).response()

    return app


def listen(host: str, port: int, share: bool) -> socket.socket:
    """A socket that listens. `share`: other servers may listen on the same port, and the system spreads connections."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if share:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind((host, port))
    bound.listen(4096)
    return bound


def serve(
    folder: str,
    name: str,
    encoder: str = "",
    host: str = "127.0.0.1",
    port: int = 8000,
    share_port: bool = False,
    queue: int = 256,
    deadline: float = 30.0,
    threads: int = 0,
) -> None:
    """Serve the student that was exported to `folder` until a signal ends the process; UDRL_API_KEYS holds API keys.

    name: of the student, in the names of models. encoder: measures achieved rewards; "" for none of them.
    queue: prompts that may wait. deadline: of one request [s]. threads: of the processor; 0 for all cores.
    """
    engine = DeployedStudent.load(folder, threads)
    keys = [key for key in os.environ.get("UDRL_API_KEYS", "").replace(",", " ").split() if key]
    scorer = Scorer(Path(folder), encoder) if encoder else None
    app = make_app(Server(engine, name, scorer, queue, deadline), keys)
    try:
        bound = listen(host, port, share_port)
    except OSError as error:
        sys.exit(f"parameter port={port}: cannot listen on {host} ({error.strerror})")
    with suppress(ImportError, ValueError):  # as many connections as the system allows
        import resource

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads for a single text only cost time
    sys.setswitchinterval(0.0005)  # a thread that writes asks for the interpreter once per token
    print(f"{name} ({engine.name}) answers on http://{host}:{bound.getsockname()[1]}", flush=True)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=math.ceil(deadline), server_header=False
    )
    uvicorn.Server(config).run(sockets=[bound])


if __name__ == "__main__":
    serve(**json.loads(sys.argv[1]))
