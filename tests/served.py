"""A real server in a process of its own, as `udrl serve` starts it, and plain requests to it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from udrl_utils.deploy.export import STEADY

TASK = "text_to_image"
MODEL = f"ready:{TASK}"


class Served:
    """The address of a server, its process, and what it printed."""

    def __init__(self, process: subprocess.Popen, port: int):
        self.process, self.port, self.url = process, port, f"http://127.0.0.1:{port}"

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON (or text) and headers of a reply. `body`: bytes as they are, or a value to send as JSON."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        client.request("GET" if data is None else "POST", path, data, {"Content-Type": "application/json", **named})
        reply = client.getresponse()
        text = reply.read().decode()
        client.close()
        kind = reply.getheader("content-type", "")
        return reply.status, json.loads(text) if "json" in kind else text, dict(reply.getheaders())

    def memory_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1000

    def end(self, with_signal: int = signal.SIGTERM) -> int:
        self.process.send_signal(with_signal)
        return self.process.wait(30)


@contextmanager
def served(folder: Path, keys: str = "", **options: Any) -> Iterator[Served]:
    """A server of an exported student; it ends with the block."""
    asked = json.dumps({"folder": str(folder), "name": "ready", "port": 0, **options})
    command = [sys.executable, "-m", "udrl_utils.deploy.app", asked]
    environment = {**os.environ, **STEADY, "UDRL_API_KEYS": keys}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        line = process.stdout.readline()
        yield Served(process, int(line.rsplit(":", 1)[1]))
    finally:
        process.kill()
        process.wait()


def message(content: str = "koi pond", **more: Any) -> dict[str, Any]:
    """A chat request."""
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **more}
