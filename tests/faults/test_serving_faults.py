"""A server under everything that clients do to it: each gets an answer, none stops it, none reaches another client."""

from __future__ import annotations

import json
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hostile import HOSTILE
from served import MODEL, Served, message, served

CHAT, TEXT, PLAIN = "/v1/chat/completions", "/v1/completions", "/v1/prompts"
USUAL = {"intent": "koi pond", "command": {"task": "text_to_image", "length": 6}, "temperature": 0}


@pytest.fixture(scope="module")
def server(exported_ready: Path) -> Iterator[Served]:
    with served(exported_ready, queue=64) as found:
        yield found
        assert found.process.poll() is None, "no fault has stopped it"


@pytest.fixture(scope="module")
def usual(server: Served) -> dict:
    """What the server answers before any fault."""
    return server.ask(PLAIN, USUAL)[1]


@pytest.fixture(autouse=True)
def still_answers(server: Served, usual: dict) -> Iterator[None]:
    """After each fault the server answers what it answered before: nothing of the fault is left in it."""
    yield
    assert server.ask(PLAIN, USUAL)[:2] == (200, usual)


def raw(more: str) -> bytes:
    """A chat request with more fields, written as they are."""
    return f"{json.dumps(message())[:-1]}, {more}}}".encode()


def commanded(command: Any) -> dict:
    return message(command=command)


WRONG: dict[str, tuple[str, Any, int, str | None, str]] = {  # path, body, status, field, words of the line
    "no body": (CHAT, b"", 400, None, "JSON object"),
    "half a body": (CHAT, b'{"model": "ready', 400, None, "not JSON"),
    "a list": (CHAT, b"[]", 400, None, "JSON object"),
    "a number": (CHAT, b"1", 400, None, "JSON object"),
    "null": (CHAT, b"null", 400, None, "JSON object"),
    "not JSON": (CHAT, b"model=ready", 400, None, "not JSON"),
    "invalid UTF-8": (CHAT, b'{"model": "\xff\xfe"}', 400, None, "not JSON"),
    "UTF-8 cut in the middle": (CHAT, raw('"user": "koi"').replace(b"koi", b"\xe2\x82"), 400, None, "not JSON"),
    "half of a surrogate pair": (CHAT, raw('"command": {"\\ud800": 1}'), 400, None, "unknown"),
    "50,000 brackets": (CHAT, b"[" * 50_000, 400, None, "not JSON"),
    "a number of 5,000 digits": (CHAT, raw('"n": ' + "9" * 5000), 400, None, "not JSON"),
    "too large": (CHAT, message("koi " * 50_000), 413, None, "larger than"),
    "no messages": (CHAT, {"model": MODEL}, 400, "messages", "required"),
    "empty messages": (CHAT, {"model": MODEL, "messages": []}, 400, "messages", "at least 1"),
    "no user": (CHAT, {"model": MODEL, "messages": [{"role": "system", "content": "x"}]}, 400, "messages", "user"),
    "content of another kind": (CHAT, message({"koi": 1}), 400, "messages.0.content", "valid"),
    "an image": (
        CHAT,
        message([{"type": "image_url", "image_url": {"url": "x"}}]),
        400,
        "messages.0.content.0.text",
        "required",
    ),
    "no model": (CHAT, {"messages": message()["messages"]}, 400, "model", "required"),
    "unknown model": (CHAT, message(model="gpt-4"), 404, "model", "allowed are ready, ready:"),
    "unknown task in the model": (CHAT, message(model="ready:poems"), 404, "model", "text_to_image"),
    "no task": (CHAT, message(model="ready"), 400, "command.task", "text_to_image"),
    "unknown task": (CHAT, commanded({"task": "poems"}), 400, "command.task", "text_to_image"),
    "task of another kind": (CHAT, commanded({"task": ["text_to_image"]}), 400, "command.task", "text_to_image"),
    "unknown reward": (CHAT, commanded({"charm": 0.5}), 400, "command.charm", "relevance"),
    "a reward named self": (CHAT, commanded({"self": 0.5}), 400, "command.self", "allowed"),
    "level above 1": (CHAT, commanded({"relevance": 1.5}), 400, "command.relevance", "0 to 1"),
    "negative level": (CHAT, commanded({"relevance": -0.1}), 400, "command.relevance", "0 to 1"),
    "level that is no number": (CHAT, raw('"command": {"relevance": NaN}'), 400, "command.relevance", "0 to 1"),
    "endless level": (CHAT, raw('"command": {"relevance": Infinity}'), 400, "command.relevance", "0 to 1"),
    "level as text": (CHAT, commanded({"relevance": "high"}), 400, "command.relevance", "number"),
    "level as a truth value": (CHAT, commanded({"relevance": True}), 400, "command.relevance", "number"),
    "length of 0": (CHAT, commanded({"length": 0}), 400, "command.length", "from 1"),
    "negative length": (CHAT, commanded({"length": -3}), 400, "command.length", "from 1"),
    "broken length": (CHAT, commanded({"length": 3.5}), 400, "command.length", "whole number"),
    "command as text": (CHAT, commanded("long"), 400, "command", "dictionary"),
    "n of 0": (CHAT, message(n=0), 400, "n", "greater than or equal to 1"),
    "n too large": (CHAT, message(n=1000), 400, "n", "less than or equal to 32"),
    "negative seed": (CHAT, message(seed=-1), 400, "seed", "greater than or equal to 0"),
    "temperature that is no number": (CHAT, message(temperature=float("nan")), 400, "temperature", "finite"),
    "negative temperature": (CHAT, message(temperature=-1), 400, "temperature", "greater than or equal to 0"),
    "max_tokens of 0": (CHAT, message(max_tokens=0), 400, "max_tokens", "greater than or equal to 1"),
    "stream as text": (CHAT, message(stream="maybe"), 400, "stream", "boolean"),
    "banned as text": (CHAT, message(banned="koi"), 400, "banned", "list"),
    "an empty banned word": (CHAT, message(banned=["koi", " "]), 400, "banned", "list of words"),
    "a number to keep": (CHAT, message(keep=[3]), 400, "keep.0", "string"),
    "banned and kept": (CHAT, message(banned=["koi"], keep=["a koi"]), 400, "keep", "banned, too"),
    "too many banned words": (PLAIN, {**USUAL, "banned": ["koi"] * 101}, 400, "banned", "at most 100"),
    "a long word to keep": (PLAIN, {**USUAL, "keep": ["k" * 101]}, 400, "keep.0", "at most 100"),
    "words to keep that do not fit": (
        PLAIN,
        {**USUAL, "keep": [f"koi at {k} pm" for k in range(50)]},
        400,
        "intent",
        "at most",
    ),
    "word lists for a stream": (CHAT, message(stream=True, banned=["koi"]), 400, "stream", "banned"),
    "empty intent": (CHAT, message(""), 400, "messages", "is empty"),
    "intent of punctuation": (CHAT, message(' ... "" !'), 400, "messages", "is empty"),
    "intent of control characters": (CHAT, message("\x00\x1b\u200b"), 400, "messages", "is empty"),
    "intent that does not fit": (CHAT, message("koi pond " * 200), 400, "messages", "at most"),
    "no prompts": (TEXT, {"model": MODEL, "prompt": []}, 400, "prompt", "empty"),
    "tokens as a prompt": (TEXT, {"model": MODEL, "prompt": [1, 2]}, 400, "prompt.0", "string"),
    "more prompts than a batch": (TEXT, {"model": MODEL, "prompt": ["koi"] * 9, "n": 8}, 400, "n", "at most 64"),
    "unknown field": (PLAIN, {"intent": "koi", "comand": {}}, 400, "comand", "not permitted"),
    "rewards of a server without them": (PLAIN, {"intent": "koi", "rewards": True}, 400, "rewards", "--rewards"),
    "unknown path": ("/v1/koi", {}, 404, None, "Not Found"),
    "path out of the server": ("/../../etc/passwd", None, 404, None, "Not Found"),
    "GET for POST": (CHAT, None, 405, None, "Not Allowed"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_line_that_names_the_field(server: Served, name: str) -> None:
    path, body, status, field, line = WRONG[name]
    found, reply, _ = server.ask(path, body)
    error = reply["error"]
    assert found == status, reply
    assert line in error["message"] and "\n" not in error["message"], error
    assert error.keys() == {"message", "type", "param", "code"}
    assert field is None or error["param"] == field, error


def test_hostile_intents_are_answered_as_text(server: Served) -> None:
    for text in [*(text for text in HOSTILE if len(text) < 1000), "\ud800 koi"]:
        status, reply, headers = server.ask(CHAT, message(text))
        assert status in (200, 400) and headers["content-type"] == "application/json", text
        if status == 200:
            assert "<|" not in reply["choices"][0]["message"]["content"], "no command token gets out"


def connection(server: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def post(data: dict, length: int | None = None) -> bytes:
    body = json.dumps(data).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


def test_a_body_of_100_mb_is_refused_and_not_kept(server: Served) -> None:
    before = server.memory_mb()
    with connection(server) as client:
        client.sendall(post({}, length=100_000_000))
        assert b" 413 " in client.recv(100)
    with connection(server) as client:  # without saying how long it is
        client.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
        try:
            for _ in range(100):
                client.sendall(chunk)
        except ConnectionError:
            pass  # hung up on
        else:
            assert b" 413 " in client.recv(100)
    assert server.memory_mb() < before + 20


def test_what_is_not_http_is_hung_up_on(server: Served) -> None:
    handshake = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    for noise in (handshake, b"koi pond\r\n\r\n", b"\x00" * 1000, b"GET / HTTP/9\r\n\r\n"):
        with connection(server) as client:
            client.sendall(noise)
            client.shutdown(socket.SHUT_WR)
            assert b" 200 " not in client.recv(1000)


def test_clients_that_send_slowly_or_leave_hold_nobody_up(server: Served) -> None:
    slow = [connection(server) for _ in range(20)]
    for client in slow:
        client.sendall(post(message())[:80])
    for _ in range(3):
        assert server.ask(CHAT, message(n=4))[0] == 200
    for client in slow:
        client.close()


def test_a_body_that_does_not_arrive_is_given_up(server: Served) -> None:
    with connection(server) as slow:
        slow.sendall(post(message())[:-5])
        assert b" 408 " in slow.recv(100)


def reset(client: socket.socket) -> None:
    """Close a connection at once, without the usual farewell."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def test_clients_that_leave_take_their_work_out_of_the_queue(server: Served) -> None:
    for _ in range(3):
        leavers = [connection(server) for _ in range(8)]
        for k, client in enumerate(leavers):
            client.sendall(post(message(n=8, stream=bool(k % 2), command={"length": 38})))
        for client in leavers[1::2]:
            client.recv(100)  # in mid-stream
        for client in leavers:
            reset(client)
    wait_until(lambda: "udrl_waiting_prompts 0.0" in server.ask("/metrics")[1])


def wait_until(true: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_client_that_does_not_read_its_stream_holds_nobody_up(server: Served) -> None:
    with connection(server) as lazy:
        lazy.sendall(post(message(n=32, stream=True, command={"length": 38})))
        assert server.ask(CHAT, message())[0] == 200


def test_5000_connections(server: Served) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(5000, hard - 500)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    idle = []
    try:
        for _ in range(count):
            idle.append(connection(server))
        assert server.ask(CHAT, message())[0] == 200
    finally:
        for client in idle:
            client.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_than_the_queue_holds_is_refused_with_a_time_to_come_back(server: Served) -> None:
    with ThreadPoolExecutor(24) as clients:
        replies = list(clients.map(lambda _: server.ask(CHAT, message(n=32, command={"length": 38})), range(24)))
    kinds = {status for status, _, _ in replies}
    assert kinds == {200, 429}
    for status, reply, headers in replies:
        if status == 429:
            assert headers["retry-after"].isdigit() and reply["error"]["code"] == "queue_full"
        else:
            assert len(reply["choices"]) == 32


def test_no_reply_holds_anything_of_another_client(server: Served) -> None:
    subjects = ["koi", "castle", "tiger", "lighthouse", "pizza", "violin", "desert", "robot"]
    asked = [
        message(f"{name} in the rain", temperature=0, command={"length": 5 + k}) for k, name in enumerate(subjects)
    ]
    alone = [server.ask(CHAT, each)[1]["choices"] for each in asked]
    noise = threading.Event()

    def disturb() -> None:
        while not noise.is_set():
            server.ask(CHAT, message(HOSTILE[0], stream=True, temperature=0))
            server.ask(CHAT, b'{"model": "\xff')
            leaver = connection(server)
            leaver.sendall(post(message("elephant", stream=True, temperature=0, command={"length": 38})))
            leaver.recv(500)  # in mid-stream
            reset(leaver)

    with ThreadPoolExecutor(20) as clients:
        disturbers = [clients.submit(disturb) for _ in range(3)]
        together = list(clients.map(lambda k: server.ask(CHAT, asked[k % 8])[1]["choices"], range(64)))
        noise.set()
    assert not any(each.exception() for each in disturbers)
    assert together == alone * 8


def test_a_deadline_is_kept_and_said(exported_ready: Path) -> None:
    with served(exported_ready, deadline=0.01) as server:
        status, reply, _ = server.ask(CHAT, message(n=32, command={"length": 38}))
        assert (status, reply["error"]["code"]) == (504, "deadline")
        wait_until(lambda: server.ask("/readyz")[0] == 200)
        stream = server.ask(CHAT, message(n=32, stream=True, command={"length": 38}))[1]
        assert '"code": "deadline"' in stream and "[DONE]" not in stream


def test_a_killed_server_starts_again_on_its_port_and_sigterm_finishes_what_was_begun(exported_ready: Path) -> None:
    with served(exported_ready) as server:
        assert server.ask(CHAT, message())[0] == 200
        server.end(signal.SIGKILL)
    with served(exported_ready, port=server.port) as again, ThreadPoolExecutor(8) as clients:
        replies = [clients.submit(again.ask, CHAT, message(n=8, command={"length": 38})) for _ in range(8)]
        wait_until(lambda: "udrl_batch_prompts_count 0.0" not in again.ask("/metrics")[1])
        assert again.end(signal.SIGTERM) in (0, -signal.SIGTERM)
        assert [reply.result()[0] for reply in replies] == [200] * 8
        with pytest.raises(ConnectionError):
            again.ask("/healthz")
