"""What every request passes: API keys, the size of its body, the time that it may take, and the count of it.

An ASGI middleware and the figures for a monitor. What is asked and answered is not known here.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from udrl_utils.deploy.protocol import Refused

BODY = 64 * 1024  # largest body of a request [bytes]
PATIENCE = 10.0  # how long a client may take to send its body [s]
SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Figures for a monitor, in Prometheus' text form. `waiting`: tells how many prompts are in the queue."""

    def __init__(self, waiting: Callable[[], float]):
        self.registry = to = CollectorRegistry()
        self.requests = Counter("udrl_requests", "Requests by path and status", ["path", "status"], registry=to)
        self.seconds = Histogram("udrl_request_seconds", "Time to the end of a reply", buckets=SECONDS, registry=to)
        self.tokens = Counter("udrl_tokens", "Tokens, read and written", ["kind"], registry=to)
        self.refused = Counter("udrl_refused", "Requests that were not answered, by reason", ["reason"], registry=to)
        self.batches = Histogram("udrl_batch_prompts", "Prompts written together", buckets=SIZES, registry=to)
        Gauge("udrl_waiting_prompts", "Prompts in the queue", registry=to).set_function(waiting)


def too_large() -> Refused:
    return Refused(413, f"the body is larger than {BODY} bytes", code="body_too_large")


class Gate:
    """ASGI middleware: API keys, the size of bodies, the time that they may take, and the count of requests."""

    def __init__(self, app: Any, metrics: Metrics, keys: Sequence[str]):
        self.app, self.metrics, self.keys = app, metrics, [f"Bearer {key}".encode() for key in keys]

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
                raise too_large()
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
            self.metrics.requests.labels(path, str(status)).inc()
            if path.startswith("/v1/") and scope["method"] == "POST":
                self.metrics.seconds.observe(time.perf_counter() - began)

    def check(self, path: str, headers: dict[bytes, bytes]) -> None:
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > BODY:
            raise too_large()
        given = headers.get(b"authorization", b"")
        known = [hmac.compare_digest(given, key) for key in self.keys]  # no short cut: all of them are compared
        if self.keys and path.startswith("/v1/") and not any(known):
            line = "the header Authorization: Bearer KEY is missing or holds an unknown key"
            raise Refused(401, line, code="invalid_api_key")
