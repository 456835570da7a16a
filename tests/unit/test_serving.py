"""The server as its clients see it: the OpenAI SDK, curl, the examples of its page of documentation, and a browser."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from served import MODEL, TASK, Served, message, served
from typer.testing import CliRunner

from udrl_utils.cli import app
from udrl_utils.commands import Command
from udrl_utils.deploy import app as serving
from udrl_utils.deploy.export import DeployedStudent, to_serve
from udrl_utils.errors import RunError
from udrl_utils.settings import ROOT
from udrl_utils.student import READY
from udrl_utils.text import words

USER = [{"role": "user", "content": "koi pond"}]
EXAMPLES = re.findall(r"^```(python|sh)\n(.*?)^```", (ROOT / "docs" / "serving.md").read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def server(exported_ready: Path) -> Iterator[Served]:
    with served(exported_ready, encoder="minilm") as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Served) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def strictly(reply: Completion | ChatCompletion | ChatCompletionChunk) -> None:
    """The SDK builds its types without checking them; this checks them."""
    type(reply).model_validate(reply.model_dump(), strict=True)


def test_chat_completions(client: OpenAI) -> None:
    asked = {"task": TASK, "length": 6, "relevance": 0.9}
    reply = client.chat.completions.create(model="ready", messages=USER, n=3, extra_body={"command": asked})
    strictly(reply)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert all(choice.message.content and choice.finish_reason == "stop" for choice in reply.choices)
    assert reply.model_extra["command"] == asked
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_completions_of_several_prompts(client: OpenAI) -> None:
    reply = client.completions.create(model=MODEL, prompt=["koi pond", "tea house"], n=2, temperature=0, max_tokens=500)
    strictly(reply)
    texts = [choice.text for choice in reply.choices]
    assert texts[0] == texts[1] != texts[2] == texts[3]


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_is_what_a_whole_reply_is(client: OpenAI, n: int) -> None:
    asked = {
        "model": MODEL,
        "messages": USER,
        "n": n,
        "temperature": 0,
    }  # what is drawn may be drawn again, but for streams
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks:
        strictly(chunk)
    texts, ended = [""] * n, {}
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        texts[choice.index] += choice.delta.content or ""
        ended |= {choice.index: choice.finish_reason} if choice.finish_reason else {}
    assert [" ".join(text.split()) for text in texts] == [choice.message.content for choice in whole.choices]
    assert ended == {choice.index: choice.finish_reason for choice in whole.choices}
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    assert len(chunks) > 3 * n


def test_the_async_sdk_streams(server: Served) -> None:
    async def ask() -> list[str]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            long = {"command": {"length": 12}}
            stream = await client.completions.create(model=MODEL, prompt="koi pond", stream=True, extra_body=long)
            return [chunk.choices[0].text async for chunk in stream]

    with ThreadPoolExecutor(1) as beside:  # Playwright keeps an event loop running in the main thread
        assert len(beside.submit(asyncio.run, ask()).result()) > 2


def test_max_tokens_end_a_prompt(client: OpenAI) -> None:
    reply = client.chat.completions.create(model=MODEL, messages=USER, max_completion_tokens=3)
    assert reply.choices[0].finish_reason == "length" and reply.usage.completion_tokens == 3


def test_errors_arrive_as_the_sdk_knows_them(client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-4", messages=USER)
    assert unknown.value.param == "model" and unknown.value.code == "model_not_found"
    with pytest.raises(BadRequestError, match=r"command\.length"):
        client.chat.completions.create(model=MODEL, messages=USER, extra_body={"command": {"length": -1}})


def test_models_are_the_student_and_its_tasks(client: OpenAI) -> None:
    assert {"ready", MODEL} <= {model.id for model in client.models.list()}
    assert client.models.retrieve(MODEL).owned_by == "udrl"


def test_it_writes_what_the_engine_writes(server: Served, exported_ready: Path) -> None:
    engine, command = DeployedStudent.load(exported_ready), Command(TASK, length=6, relevance=0.9)
    asked = {"intent": "Koi pond!", "n": 4, "seed": 3, "command": {"task": TASK, **command.asked}}
    for lists in ({}, {"banned": ["koi", "photo"], "keep": ["stone lantern"]}):
        expected = engine.generate(["Koi pond!"], command, n=4, seed=3, **lists)[0]
        prompts = server.ask("/v1/prompts", {**asked, **lists})[1]["prompts"]
        assert [each["prompt"] for each in prompts] == expected
        assert [each["achieved"]["length"] for each in prompts] == [len(text.split()) for text in expected]


def test_it_keeps_the_candidate_that_the_engine_keeps(exported_ready: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported_ready, tmp_path / "reads")
    engine, command = DeployedStudent.load(folder), Command(TASK, length=6, relevance=0.9)
    engine.codec = replace(engine.codec, reads=True, sampling=engine.codec.sampling | {"candidates": 4})
    engine.codec.save(folder)
    asked = {"intent": "koi pond", "n": 3, "seed": 3, "command": {"task": TASK, **command.asked}}
    with served(folder) as server:
        for options in ({}, {"candidates": 2}, {"temperature": 0.0}):
            expected = DeployedStudent.load(folder).generate(["koi pond"], command, n=3, seed=3, **options)[0]
            prompts = server.ask("/v1/prompts", asked | options)[1]["prompts"]
            assert [each["prompt"] for each in prompts] == expected
        status, refused, _ = server.ask("/v1/prompts", asked | {"candidates": 17})
        assert status == 400 and "candidates=17" in refused["error"]["message"]


def test_word_lists_hold_by_the_sdk_too(client: OpenAI) -> None:
    lists = {"banned": ["Koi"], "keep": ["lantern"]}
    for choice in client.chat.completions.create(model=MODEL, messages=USER, n=4, extra_body=lists).choices:
        assert "koi" not in words(choice.message.content) and "lantern" in choice.message.content.lower()


def test_a_command_beyond_what_was_trained_is_moved_and_noted(server: Served) -> None:
    reply = server.ask("/v1/chat/completions", message(command={"length": 1000}))[1]
    assert reply["command"]["length"] < 1000 and "beyond what was trained" in reply["note"]


def test_achieved_rewards_are_measured_on_request(server: Served) -> None:
    asked = {"intent": "koi pond", "n": 3, "rewards": True, "command": {"task": TASK, "length": 8}}
    for each in server.ask("/v1/prompts", asked)[1]["prompts"]:
        assert each["achieved"]["length"] == len(each["prompt"].split())
        assert 0 <= each["achieved"]["relevance"] <= 1 and 0 <= each["achieved"]["diversity"] <= 1
    alone = server.ask("/v1/prompts", {**asked, "n": 1})[1]["prompts"][0]["achieved"]
    assert alone["diversity"] is None, "a single prompt differs from no other"


def test_what_arrives_together_is_written_together(server: Served) -> None:
    def counts() -> tuple[float, float]:
        text = server.ask("/metrics")[1]
        found = (re.search(rf"udrl_batch_prompts_{name} (\S+)", text)[1] for name in ("count", "sum"))
        return tuple(map(float, found))

    before, asked = counts(), message(temperature=0)  # what is drawn may be drawn again
    with ThreadPoolExecutor(32) as clients:
        replies = list(clients.map(lambda _: server.ask("/v1/chat/completions", asked)[0], range(96)))
    batches, prompts = (after - first for after, first in zip(counts(), before, strict=True))
    assert replies == [200] * 96 and prompts == 96 and batches < 48


def test_it_is_small_and_loads_no_pytorch(server: Served) -> None:
    assert server.memory_mb() < 200
    mapped = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "ctranslate2" in mapped and not re.search("libtorch|pandas|arrow", mapped)
    assert server.ask("/healthz")[0] == server.ask("/readyz")[0] == 200
    text = server.ask("/metrics")[1]
    for name in ("udrl_requests_total", "udrl_request_seconds_bucket", "udrl_waiting_prompts", "udrl_tokens_total"):
        assert name in text


def test_keys_are_asked_for(exported_ready: Path) -> None:
    with served(exported_ready, keys="first, second") as server:
        for path, body in (("/v1/models", None), ("/v1/chat/completions", message())):
            for wrong in ("", "Bearer fir", "Bearer ", "second"):
                status, reply, _ = server.ask(path, body, **({"Authorization": wrong} if wrong else {}))
                assert status == 401 and reply["error"]["code"] == "invalid_api_key", wrong
                assert "first" not in str(reply)
            assert server.ask(path, body, Authorization="Bearer second")[0] == 200
        assert server.ask("/healthz")[0] == server.ask("/")[0] == 200


@pytest.mark.parametrize(("language", "source"), EXAMPLES, ids=[f"{k} {kind}" for k, (kind, _) in enumerate(EXAMPLES)])
def test_the_examples_of_the_documentation_run(server: Served, language: str, source: str) -> None:
    program = ["sh", "-c"] if language == "sh" else [sys.executable, "-c"]
    source = source.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
    done = subprocess.run([*program, source], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and len(done.stdout) > 3, done.stderr


def test_the_page_asks_for_nothing_from_elsewhere(server: Served) -> None:
    status, text, headers = server.ask("/")
    assert status == 200 and headers["content-type"].startswith("text/html")
    assert "connect-src 'self'" in text and not re.search(r"(src|href)=.?(https?:)?//", text)


def test_what_is_served_is_exported_once(exported_ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDRL_OUTPUTS", str(tmp_path))
    assert to_serve(str(exported_ready)) == (exported_ready, "int8", "")
    folder, name, encoder = to_serve("ready")
    assert (name, encoder) == ("ready", "minilm") and folder.parent == tmp_path / ".served"
    monkeypatch.setattr("udrl_utils.deploy.export.export", None)  # would fail
    assert to_serve("ready")[0] == folder
    with pytest.raises(RunError, match="student='nothing' is neither ready, nor a run"):
        to_serve("nothing")


def test_a_port_that_is_taken_is_one_line(exported_ready: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=rf"parameter port={port}: cannot listen on 127.0.0.1"):
            serving.serve(str(exported_ready), "ready", port=port)


def test_a_page_is_written_by_the_command_line(outputs: Path) -> None:
    done = CliRunner().invoke(app, ["page", str(READY), "--out", str(outputs / "student.html")])
    assert done.exit_code == 0, done.output
    assert re.search(r"student\.html \(\d\.\d MB\)", done.output)
    assert CliRunner().invoke(app, ["page", "nothing"]).exit_code != 0
