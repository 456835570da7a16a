"""A server that speaks the OpenAI chat protocol by a script: well, or with every fault that a teacher may meet."""

from __future__ import annotations

import json
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# What goes wrong on the way; a client should try again.
PASSING = ("429", "500", "503", "hang", "cut", "torn_json", "no_choices", "html_page")
# What is wrong with an answer that arrives; no row of it should be admitted.
BAD_ANSWERS = ("prose", "refusal", "huge", "control", "chinese", "markup", "half_list")
HANG = 0.8  # seconds
HUGE = "koi " * 2_500_000

Answer = Callable[[dict[str, Any], int], str]


def good_answer(body: dict[str, Any], number: int) -> str:
    """Eight prompts about each intent that was asked for, no two alike."""
    intents = [json.loads(text) for text in re.findall(r"^Intent.*: (.+)$", body["messages"][-1]["content"], re.M)]
    manners = ("oil painting", "photograph", "woodcut", "mosaic", "poster", "sketch", "fresco", "engraving")
    written = {
        str(place): [f"{manner} of {intent} number {number}{k} at dawn" for k, manner in enumerate(manners)]
        for place, intent in enumerate(intents, 1)
    }
    return json.dumps(written if len(intents) > 1 else written["1"])


def bad_answer(kind: str, body: dict[str, Any], number: int) -> str:
    """An answer with the fault of that name."""
    good = good_answer(body, number)
    return {
        "prose": "What a lovely subject! One could imagine a quiet scene, painted with care, and much more besides.",
        "refusal": "I'm sorry, but I can't help with that.",
        "huge": HUGE,
        "control": json.dumps([f"a koi\x07 pond \x1b[31m number {number} {k}" for k in range(8)]),
        "chinese": json.dumps([f"清晨 的 锦鲤 池塘 {number} {k}" for k in range(8)], ensure_ascii=False),
        "markup": json.dumps([f"<img src=x onerror=alert({k})> a koi pond {number}" for k in range(8)]),
        "half_list": good[: len(good) // 2],
    }[kind]


class Loopback(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, *where: Any) -> None:
        """A client that hung up is not worth a word; all else is."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*where)


class ScriptedServer:
    """Answers on loopback, each after `latency` seconds; `faulty` is the share of requests that go wrong.

    `kinds` counts what it did; `keys` holds the Authorization headers; `most` is the largest number under way at once.
    """

    def __init__(self, latency: float = 0.0, faulty: float = 0.0, answer: Answer = good_answer, seed: int = 0):
        self.latency, self.faulty, self.answer = latency, faulty, answer
        self.rng, self.lock = random.Random(seed), threading.Lock()
        self.kinds, self.keys, self.bodies = Counter(), [], []
        self.under_way = self.most = 0
        self.server = Loopback(("127.0.0.1", 0), make_handler(self))

    def __enter__(self) -> ScriptedServer:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def other(self, path: str, data: bytes) -> tuple[int, bytes]:
        """Status and content for any other address; data is empty when something is read."""
        return 404, b'{"error": {"message": "Not found"}}'

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def kind(self, body: dict[str, Any]) -> str | tuple[int, dict[str, Any]]:
        """What to do with the next request: by name, or a status and the JSON to answer with."""
        with self.lock:
            kind = self.rng.choice(PASSING + BAD_ANSWERS) if self.rng.random() < self.faulty else "good"
            self.kinds[kind] += 1
            return kind


class BatchServer(ScriptedServer):
    """Keeps batch files too, and answers them after they have been looked at `looks` times.

    `refuse` names the numbers of questions that are answered with an error; `files` holds what was sent and answered.
    """

    def __init__(self, looks: int = 1, refuse: tuple[int, ...] = (), **how: Any):
        super().__init__(**how)
        self.looks, self.refuse, self.files, self.seen = looks, refuse, {}, Counter()

    def other(self, path: str, data: bytes) -> tuple[int, bytes]:
        """The files and batches of the protocol."""
        name = path.removeprefix("/v1/").split("/")
        if name[0] == "files" and data:
            number = f"file-{len(self.files)}"
            self.files[number] = [line for line in data.splitlines() if line.startswith(b'{"custom_id"')]
            return 200, json.dumps({"id": number, "object": "file", "purpose": "batch"}).encode()
        if name[0] == "files":
            return 200, b"\n".join(self.files[name[1]])
        sent = json.loads(data)["input_file_id"] if data else name[1].removeprefix("batch-")
        if sent not in self.files:
            return super().other(path, data)
        self.seen[sent] += not data
        ended = self.seen[sent] > self.looks
        if ended:
            self.files[f"out-{sent}"] = [self.answer_to(n, line) for n, line in enumerate(self.files[sent])]
        batch = {"id": f"batch-{sent}", "object": "batch", "status": "completed" if ended else "in_progress"}
        return 200, json.dumps(batch | {"output_file_id": f"out-{sent}" if ended else None}).encode()

    def answer_to(self, number: int, line: bytes) -> bytes:
        """A line of the file of answers."""
        asked = json.loads(line)
        good = {"status_code": 200, "body": completion(self.answer(asked["body"], number))}
        bad = {"status_code": 400, "body": error("this one is refused")}
        return json.dumps(
            {"custom_id": asked["custom_id"], "response": bad if number in self.refuse else good}
        ).encode()


def make_handler(script: ScriptedServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else a reply waits 40 ms until its header is acknowledged

        def do_GET(self) -> None:
            self.reply(*script.other(self.path, b""))

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            if not self.path.endswith("/chat/completions"):
                return self.reply(*script.other(self.path, data))
            body = json.loads(data)
            with script.lock:
                script.keys.append(self.headers["Authorization"])
                script.bodies.append(body)
                script.under_way += 1
                script.most = max(script.most, script.under_way)
            try:
                time.sleep(script.latency)
                self.act(script.kind(body), body)
            finally:
                with script.lock:
                    script.under_way -= 1

        def act(self, kind: str | tuple[int, dict[str, Any]], body: dict[str, Any]) -> None:
            number = sum(script.kinds.values())
            if isinstance(kind, tuple):
                self.reply(kind[0], json.dumps(kind[1]).encode())
            elif kind.isdigit():
                wait = {"Retry-After": "0.1"} if kind == "429" else {}
                self.reply(int(kind), json.dumps(error("busy")).encode(), **wait)
            elif kind == "hang":
                time.sleep(HANG)
                self.close_connection = True
            elif kind == "cut":
                self.close_connection = True
            elif kind == "torn_json":
                self.reply(200, json.dumps(completion("a koi pond"))[:40].encode())
            elif kind == "no_choices":
                self.reply(200, b'{"id": "1", "object": "chat.completion", "choices": []}')
            elif kind == "html_page":
                self.reply(200, b"<html>maintenance</html>", **{"Content-Type": "text/html"})
            elif kind == "huge":
                self.reply(200, huge_completion())
            else:
                good = kind == "good"
                content = script.answer(body, number) if good else bad_answer(kind, body, number)
                self.reply(200, json.dumps(completion(content)).encode())

        def reply(self, status: int, data: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    return Handler


def completion(content: Any, finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    """A chat completion as the protocol has it; `message` holds what some servers add to it."""
    message = {"role": "assistant", "content": content, **message}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "scripted",
        "choices": [{"index": 0, "finish_reason": finish_reason, "message": message}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }


def error(message: str, code: str | None = None) -> dict[str, Any]:
    """An error as the protocol has it."""
    return {"error": {"message": message, "code": code}}


@cache
def huge_completion() -> bytes:
    """Ten megabytes, made once: the machine's time belongs to the client that is tested."""
    return json.dumps(completion(HUGE)).encode()
