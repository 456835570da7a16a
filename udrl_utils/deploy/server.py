"""The server: an exported student answers over HTTP, in the form of OpenAI's completions and in a plain form of its own.

In go JSON requests; out come prompts, whole or piece by piece, errors as the protocol has them, and figures for a monitor.
How batches form is not known here, and PyTorch is never imported: achieved rewards, where they are asked for, are
measured by a second process.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import math
import os
import socket
import sys
import time
import uuid
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException

from udrl_utils.commands import Command, CommandError
from udrl_utils.deploy.batches import BATCH, Batcher, Job, QueueFull
from udrl_utils.deploy.export import DeployedStudent
from udrl_utils.deploy.page import server_page
from udrl_utils.deploy.protocol import (
    Asked,
    ChatRequest,
    Completion,
    PromptsRequest,
    Refused,
    TextRequest,
    choice,
    event,
    intent_of,
    reason,
    refusal_of,
    usage,
)
from udrl_utils.deploy.scoring import Scorer
from udrl_utils.tasks import clean_intent

BODY = 64 * 1024  # largest body of a request [bytes]
PATIENCE = 10.0  # how long a client may take to send its body [s]
SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Figures for a monitor, in Prometheus' text form."""

    def __init__(self, batcher: Batcher):
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("udrl_requests", "Requests by path and status", ["path", "status"], registry=registry)
        self.seconds = Histogram(
            "udrl_request_seconds", "Time to the end of a reply", buckets=SECONDS, registry=registry
        )
        self.tokens = Counter("udrl_tokens", "Tokens, read and written", ["kind"], registry=registry)
        self.refused = Counter(
            "udrl_refused", "Requests that were not answered, by reason", ["reason"], registry=registry
        )
        self.batches = Histogram(
            "udrl_batch_prompts", "Prompts written together", buckets=(1, 2, 4, 8, 16, 32, 64, 128), registry=registry
        )
        Gauge("udrl_waiting_prompts", "Prompts in the queue", registry=registry).set_function(lambda: batcher.waiting)


class Server:
    """Answers for one exported student."""

    def __init__(
        self, engine: DeployedStudent, name: str, scorer: Scorer | None = None, queue: int = 256, deadline: float = 30.0
    ):
        self.engine, self.name, self.scorer, self.deadline = engine, name, scorer, deadline
        self.batcher = Batcher(engine, queue, lambda size: self.metrics.batches.observe(size))
        self.metrics = Metrics(self.batcher)
        self.tasks = list(engine.codec.edges)
        self.models = [name, *(f"{name}:{task}" for task in self.tasks)]
        self.feasible = lru_cache(4096)(engine.codec.feasible)
        self.started = int(time.time())

    # ---- what is asked

    def command(self, asked: Asked, task: str | None = None) -> tuple[Command, str]:
        """The command of a request, the nearest one that was trained, and a note where it differs.

        Without a command it is the task's best one. Raises: Refused.
        """
        given = dict(asked.command or {})
        task, length = given.pop("task", None) or task, given.pop("length", None)
        if task is None:
            raise Refused(400, f"command.task is missing; allowed are {', '.join(self.tasks)}", "command.task")
        for field, value in {"length": length, **given}.items():
            if isinstance(value, str):
                raise Refused(400, f"command.{field}={value!r} must be a number", f"command.{field}")
        if isinstance(length, float) and length.is_integer():
            length = int(length)
        try:
            if asked.command is None and task in self.tasks:
                return self.engine.best_command(task), ""
            return self.feasible(Command(task, length, **given))
        except CommandError as error:
            field = next(
                (
                    name
                    for name in ("task", "length", *given)
                    if str(error).startswith((f"{name}=", f"reward '{name}'"))
                ),
                "",
            )
            raise Refused(400, f"command: {error}", f"command.{field}".strip(".")) from None

    def task_of(self, model: str) -> str | None:
        """The task that a model's name ends with, if any. Raises: Refused."""
        if model not in self.models:
            raise Refused(
                404, f"model={model!r:.80} is unknown; allowed are {', '.join(self.models)}", "model", "model_not_found"
            )
        return model.removeprefix(self.name).removeprefix(":") or None

    def job(self, asked: Asked, intents: list[str], command: Command, param: str, **options: Any) -> Job:
        """A job that writes `n` prompts for each intent. Raises: Refused."""
        prefixes = []
        for intent in intents:
            if not clean_intent(intent):
                raise Refused(400, f"{param}: the intent {intent!r:.80} is empty", param)
            with warnings.catch_warnings(record=True) as cut:
                prefixes.append(self.engine.tokens(self.engine.prefix(intent, command)))
            if cut:
                raise Refused(400, f"{param}: {cut[0].message}".replace(" reads the first", " reads at most"), param)
        if len(intents) * asked.n > BATCH:
            raise Refused(
                400,
                f"n={asked.n}: {len(intents) * asked.n} prompts are asked for; at most {BATCH} are written at once",
                "n",
            )
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
                self.metrics.refused.labels("deadline").inc()
                raise Refused(504, f"no reply within the deadline of {self.deadline:g} s", None, "deadline")
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
        head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": asked.model,
        }
        said = {"command": {"task": command.task, **command.asked}, **({"note": note} if note else {})}
        if asked.stream:
            events: asyncio.Queue[tuple[int, int | None]] = asyncio.Queue()
            job = self.job(asked, intents, command, param, on_token=lambda k, token: events.put_nowait((k, token)))
            self.submit(job)
            return StreamingResponse(self.events(job, events, asked, head, said), media_type="text/event-stream")
        job = self.job(asked, intents, command, param)
        choices = [
            choice(k, reason(job, k), {"message": {"role": "assistant", "content": text}} if chat else {"text": text})
            for k, text in enumerate(await self.written(job, request))
        ]
        kind = "chat.completion" if chat else "text_completion"
        return JSONResponse({**head, "object": kind, "choices": choices, "usage": usage(job), **said})

    async def events(
        self, job: Job, tokens: asyncio.Queue, asked: Completion, head: dict, said: dict
    ) -> AsyncIterator[bytes]:
        """Server-sent events: the pieces of each prompt, its end, and [DONE]."""
        chat = isinstance(asked, ChatRequest)
        usages = bool(asked.stream_options and asked.stream_options.include_usage)
        head |= {
            "object": "chat.completion.chunk" if chat else "text_completion",
            **({"usage": None} if usages else {}),
        }
        wrap: Callable[[str], dict] = lambda text: {"delta": {"content": text}} if chat else {"text": text}  # noqa: E731
        decoders = [self.engine.decoder() for _ in range(job.size)]
        begun, left = [False] * job.size, job.size
        try:
            if chat:
                for k in range(job.size):
                    yield event(
                        {**head, "choices": [choice(k, None, {"delta": {"role": "assistant", "content": ""}})], **said}
                    )
            async with asyncio.timeout(self.deadline):
                while left:
                    k, token = await tokens.get()
                    if token is None:
                        left -= 1
                        yield event(
                            {
                                **head,
                                "choices": [choice(k, reason(job, k), {"delta": {}} if chat else {"text": ""})],
                                **said,
                            }
                        )
                    elif piece := decoders[k](token):
                        piece, begun[k] = piece if begun[k] else piece.lstrip(), True
                        yield event({**head, "choices": [choice(k, None, wrap(piece))]})
            if usages:
                yield event({**head, "choices": [], "usage": usage(job)})
            yield b"data: [DONE]\n\n"
        except TimeoutError:
            self.metrics.refused.labels("deadline").inc()
            yield event(
                {"error": Refused(504, f"no reply within the deadline of {self.deadline:g} s", None, "deadline").error}
            )
        finally:
            job.cancelled = True
            self.count(job)

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


class Gate:
    """ASGI middleware: API keys, the size of bodies, the time that they may take, and the count of requests."""

    def __init__(self, app: Any, server: Server, keys: list[str]):
        self.app, self.server, self.keys = app, server, [key.encode() for key in keys]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, read, status, whole = time.perf_counter(), 0, 499, False
        headers = dict(scope["headers"])

        async def limited() -> Any:
            nonlocal read, whole
            try:
                message = await asyncio.wait_for(receive(), None if whole else PATIENCE)
            except TimeoutError:
                raise Refused(408, f"the body did not arrive within {PATIENCE:g} s", Connection="close") from None
            read, whole = read + len(message.get("body", b"")), whole or not message.get("more_body")
            if read > BODY:
                raise Refused(413, f"the body is larger than {BODY} bytes", code="body_too_large")
            return message

        async def noted(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            self.check(scope["path"], headers)
            await self.app(scope, limited, noted)
        except Refused as refused:
            await refused.response()(scope, receive, noted)
        finally:
            path = scope["path"] if status != 404 else "other"
            self.server.metrics.requests.labels(path, str(status)).inc()
            if path.startswith("/v1/") and scope["method"] == "POST":
                self.server.metrics.seconds.observe(time.perf_counter() - began)

    def check(self, path: str, headers: dict[bytes, bytes]) -> None:
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > BODY:
            raise Refused(413, f"the body is larger than {BODY} bytes", code="body_too_large")
        if self.keys and path.startswith("/v1/"):
            given = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
            if not any(
                [hmac.compare_digest(given, key) for key in self.keys]
            ):  # no short cut: all of them are compared
                raise Refused(
                    401,
                    "the header Authorization: Bearer KEY is missing or holds an unknown key",
                    code="invalid_api_key",
                )


def make_app(server: Server, keys: Sequence[str] = ()) -> FastAPI:
    """The HTTP application of a server. `keys`: API keys, one of which /v1/ asks for; none asks for none."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await server.batcher.start()
        yield
        await server.batcher.stop()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, strict_content_type=False)
    app.add_middleware(Gate, server=server, keys=list(keys))
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
        message = (
            f"{request.method} {request.url.path[:80]}: {error.detail}"
            if error.status_code != 400
            else "the body is not JSON in UTF-8"
        )
        return Refused(error.status_code, message).response()

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
    """Serve the student that was exported to `folder` until a signal ends the process; API keys come from UDRL_API_KEYS.

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

        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    sys.setswitchinterval(0.0005)  # a thread that writes asks for the interpreter once per token
    print(f"{name} ({engine.name}) answers on http://{host}:{bound.getsockname()[1]}", flush=True)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=math.ceil(deadline), server_header=False
    )
    uvicorn.Server(config).run(sockets=[bound])


if __name__ == "__main__":
    serve(**json.loads(sys.argv[1]))
