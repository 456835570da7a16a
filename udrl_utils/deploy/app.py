"""The serving process: the HTTP routes of a server, and what starts and ends it.

`udrl serve` starts it as `python -m udrl_utils.deploy.app` with its options as JSON. What is asked and answered is not
known here, and PyTorch is never imported.
"""

from __future__ import annotations

import json
import math
import os
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import generate_latest
from starlette.exceptions import HTTPException

from udrl_utils.deploy.export import DeployedStudent
from udrl_utils.deploy.gate import Gate
from udrl_utils.deploy.page import server_page
from udrl_utils.deploy.protocol import ChatRequest, PromptsRequest, Refused, TextRequest, intent_of, refusal_of
from udrl_utils.deploy.scoring import Scorer
from udrl_utils.deploy.server import Server


def make_app(server: Server, keys: Sequence[str]) -> FastAPI:
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

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return refusal_of(error).response()

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        if isinstance(error, Refused):
            return error.response()
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
