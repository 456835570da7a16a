"""Teachers behind servers that fail: every prompt arrives or is counted, nothing malformed is admitted, nothing is paid
for twice, and nobody waits without need. Sources of cases are issues on github.com."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import openai
import pandas as pd
import pytest
from faults.servers import BAD_ANSWERS, BatchServer, ScriptedServer, bad_answer, completion, error, good_answer

from udrl_utils import pairs
from udrl_utils.errors import RunError, SettingsError
from udrl_utils.filters import reject_reasons
from udrl_utils.pairs import cost, distil, extra_teacher, read_pairs
from udrl_utils.runs import RunFolder
from udrl_utils.settings import SETTINGS, DistillationSettings, resolve
from udrl_utils.teachers import OpenAITeacher, batch, server
from udrl_utils.teachers.replies import Journal, Request, parse_reply
from udrl_utils.teachers.server import ChatClient

REQUESTS = [Request("text_to_image", f"koi pond {k}", 8) for k in range(40)]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, outputs) -> None:
    """A key, and waits between attempts and looks that are too short to notice."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-the-test")
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr(openai._base_client, "MAX_RETRY_DELAY", 0.05)
    monkeypatch.setattr(batch, "WAIT", 0.0)


def served(smoke: dict, *urls: str, **changes) -> tuple[DistillationSettings, RunFolder]:
    """Settings of a run whose teacher is served at those addresses."""
    served_by = {"teacher": "openai", "teacher_model": "m", "teacher_form": "list", "teacher_base_urls": list(urls)}
    settings = resolve(DistillationSettings, smoke | served_by | {"prompts_per_intent": 8} | changes)
    return settings, RunFolder(settings.run).start("01_pairs", settings)


def teacher_at(*urls: str, concurrency: int = 8, budget: int | None = None, client=ChatClient, **how) -> OpenAITeacher:
    return OpenAITeacher(client("m", urls, concurrency, 0.5, budget), 1.0, 0, **how)


def scripted(answer_to) -> ScriptedServer:
    """A server that answers by a function from a request's body to a kind."""
    server = ScriptedServer()
    server.kind = answer_to
    return server


def refuses(field: str, status: int, said) -> object:
    """A server's answer to a body: an error to those that have a field, or a system turn."""
    said = error(said) if isinstance(said, str) else said

    def kind(body: dict):
        has = field in body or (field == "system" and body["messages"][0]["role"] == "system")
        return (status, said) if has else "good"

    return kind


# What is refused, and changed for the rest of the run: source, field, status, what is said, what is told.
EXTRA = {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}
LIMIT = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
ROLES = "Conversation roles must alternate user/assistant/user/assistant/..."
HEAT = "Unsupported value: 'temperature' does not support 0.9 with this model. Only the default (1) value is supported."
JINJA = "While executing CallExpression at line 19: Error: Jinja Exception: " + ROLES
ADAPTED = [
    ("pydantic/pydantic-ai/issues/1205", "max_tokens", 400, LIMIT, "max_tokens is sent as max_completion_tokens"),
    ("mistralai/client-ts/issues/65", "seed", 422, EXTRA, "no seed is sent"),
    ("huggingface/chat-ui/issues/1386", "system", 400, "System role not supported", "the user's turn has the system"),
    ("microsoft/autogen/issues/1037", "system", 400, ROLES, "the user's turn has the system text"),
    ("nextai-translator/raycast-openai-translator/issues/34", "system", 500, JINJA, "the user's turn has the system"),
    ("", "system", 400, "Only user and assistant roles are supported!", "the user's turn has the system text"),
    ("", "system", 400, "Developer instruction is not enabled for models/gemma-3", "the user's turn has the system"),
    ("", "system", 422, "messages.0.role: Input should be 'user' or 'assistant'", "the user's turn has the system"),
    ("", "response_format", 500, "failed to parse grammar", "no JSON schema is sent"),
    ("", "seed", 400, {"object": "error", "message": "seed is not allowed", "code": 400}, "no seed is sent"),
    ("tmc/langchaingo/issues/1355", "temperature", 400, HEAT, "no temperature is sent"),
    ("lmstudio-ai/lmstudio-bug-tracker/issues/189", "response_format", 400, "unknown type", "no JSON schema is sent"),
    ("ggml-org/llama.cpp/issues/11847", "response_format", 400, "either one, but not both", "no JSON schema is sent"),
]


@pytest.mark.parametrize(
    ("source", "field", "status", "said", "told"), ADAPTED, ids=[case[0] or str(case[3]) for case in ADAPTED]
)
def test_what_a_server_refuses_is_changed_once_and_told(tmp_path, capsys, source, field, status, said, told) -> None:
    with scripted(refuses(field, status, said)) as server:
        assert all(teacher_at(server.url).write(REQUESTS[:12], Journal(tmp_path / "journal")))
    assert len(server.bodies) == 13
    [line] = [line for line in capsys.readouterr().out.splitlines() if "the server said" in line]
    assert told in line and (said if isinstance(said, str) else field) in line
    text = "".join(turn["content"] for turn in server.bodies[-1]["messages"])
    assert text.startswith(server.bodies[0]["messages"][0]["content"]), "the instruction is still there"
    assert {"max_tokens", "max_completion_tokens"} & server.bodies[-1].keys()


def test_a_strict_server_gets_there_in_three_steps(tmp_path) -> None:
    steps = [refuses("max_tokens", 400, LIMIT), refuses("seed", 422, EXTRA), refuses("system", 500, "System role no")]
    with scripted(lambda body: next((kind for step in steps if (kind := step(body)) != "good"), "good")) as server:
        assert all(teacher_at(server.url).write(REQUESTS[:8], Journal(tmp_path / "journal")))
    assert len(server.bodies) == 8 + 3


# What no change can help: source, status, what is said, its code, requests that are made, the line.
LONG = "This model's maximum context length is 512 tokens. However, you requested 1247 tokens"
BROKE = "Your credit balance is too low to access the API"
STOPS = [
    ("", 401, "Incorrect API key provided: sk-secret-of-the-test", None, 1, r"answers 401 .* OPENAI_API_KEY"),
    ("", 402, "Insufficient credits", None, 1, r"answers 402 .*: Insufficient credits"),
    ("", 400, "API key not valid. Please pass a valid API key.", None, 1, r"answers 400 .*: API key not valid"),
    ("", 403, "Access denied due to Virtual Network rules", None, 1, r"answers 403 .*: Access denied"),
    ("", 404, "The model `m` does not exist.", None, 1, r"answers 404 to model 'm': The model `m` does not exist"),
    ("langchain-ai/langchainjs/issues/1929", 429, "You exceeded", "insufficient_quota", 1, r"answers 429 .*: You exc"),
    ("bespokelabsai/curator/issues/296", 400, BROKE, None, 1, r"answers 400 .*: Your credit balance is too low"),
    ("vllm-project/vllm/issues/20409", 400, LONG, None, 1, r"400 This model's maximum .*; lower prompts_per_intent"),
    ("", 400, "something is wrong", None, 4, r"answered none of the requests .*; the last fault: 400 something is"),
    ("", 500, "CUDA out of memory", None, 2, r"does not answer .*; the last fault: 500 CUDA out of memory"),
    ("", 503, "loading the model", None, 2, r"does not answer .*; the last fault: 503 loading the model"),
]


@pytest.mark.parametrize(("source", "status", "said", "code", "requests", "line"), STOPS, ids=[c[2] for c in STOPS])
def test_a_server_that_cannot_answer_is_probed_and_its_words_are_shown(
    tmp_path, monkeypatch, source, status, said, code, requests, line
) -> None:
    monkeypatch.setattr(server, "ATTEMPTS", 2)
    with scripted(lambda body: (status, error(said, code))) as strict:
        with pytest.raises(RunError, match=line) as caught:
            teacher_at(strict.url).write(REQUESTS, Journal(tmp_path / "journal"))
        assert len(strict.bodies) == requests
    assert "sk-secret" not in str(caught.value) + (tmp_path / "journal").read_text()
    assert f'"error": "{status}", "said": "{said[:20]}' in (tmp_path / "journal").read_text()


def test_a_limit_that_passes_is_waited_for(tmp_path) -> None:
    """LibreChat-AI/agents/pull/358: a limit of concurrent requests that reads like a spent quota."""
    said = {"status": 429, "error": "INSUFFICIENT QUOTA", "message": "You exceeded your limit of concurrent requests."}
    with scripted(lambda body: (429, said) if server_.bodies.count(body) == 1 else "good") as server_:
        assert all(teacher_at(server_.url).write(REQUESTS[:6], Journal(tmp_path / "journal")))


def test_intents_are_asked_for_in_smaller_groups_where_a_window_is_small(tmp_path, capsys) -> None:
    """vllm-project/vllm/issues/19464"""

    def kind(body: dict):
        return (400, error(LONG)) if body["messages"][-1]["content"].count("Intent") > 2 else "good"

    with scripted(kind) as server_:
        written = teacher_at(server_.url, together=8).write(REQUESTS[:16], Journal(tmp_path / "journal"))
    assert all(len(prompts) == 8 for prompts in written) and len(server_.bodies) == 2 + 8
    assert "m: 2 intents share a request now; " in capsys.readouterr().out


# Replies that answer nothing: source, reply, fault.
EMPTY = [
    ("vllm-project/vllm/issues/45736", completion(None), "empty"),
    ("lmstudio-ai/lmstudio-bug-tracker/issues/1602", completion("", reasoning_content="Let me think."), "empty"),
    ("vllm-project/vllm/issues/17609", completion(None, reasoning="1. a koi 2. an owl"), "empty"),
    ("", completion("<think>Perhaps 1. a koi 2. an owl</think>"), "empty"),
    ("", completion('["a koi pond", "a koi', "length"), "cut"),
    ("vllm-project/vllm/issues/4093", completion('{"prompts":' + "\n" * 900, "length"), "cut"),
    ("", completion("a koi", "content_filter"), "filtered"),
    ("", completion("a koi po", "max_tokens"), "cut"),
    ("", completion("a koi po", "MAX_TOKENS"), "cut"),
    ("", completion("a koi", "SAFETY"), "filtered"),
    ("", completion("a koi po", "error"), "cut"),
    ("", completion("<|im_end|>"), "empty"),
    ("", completion([{"type": "thinking", "thinking": [{"type": "text", "text": "a draft"}]}]), "empty"),
]


@pytest.mark.parametrize(("source", "reply", "fault"), EMPTY)
def test_a_reply_that_answers_nothing_is_counted_and_asked_again(tmp_path, source, reply: dict, fault: str) -> None:
    bad, journal = REQUESTS[5].intent, Journal(tmp_path / "journal")
    with scripted(lambda body: (200, reply) if f'"{bad}"' in body["messages"][-1]["content"] else "good") as server_:
        written = teacher_at(server_.url).write(REQUESTS[:12], journal)
        asked = server_.bodies[:]
    assert [request.intent for request, prompts in zip(REQUESTS, written, strict=False) if not prompts] == [bad]
    assert journal.left_out == {fault: 1} and journal.usage[f"failed_{fault}"] == 1 and len(asked) == 12
    assert journal.usage["tokens_out"] == 20 * 12, "what was written was paid for"
    with ScriptedServer() as server_:
        again = teacher_at(server_.url).write(REQUESTS[:12], Journal(tmp_path / "journal"))
    assert all(again) and len(server_.bodies) == 1
    assert server_.bodies[0]["max_tokens"] == 4 * asked[0]["max_tokens"]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", None])
def test_a_model_that_thinks_longer_than_it_may_write_gets_more_room(tmp_path, capsys, field: str | None) -> None:
    """vllm-project/vllm/issues/52640"""

    def kind(body: dict):
        if body["max_tokens"] > 4 * 960:
            return "good"
        thoughts = "The user wants prompts. 1. a koi 2. an owl"
        said = completion(None, "length", **{field: thoughts}) if field else completion(f"<think>{thoughts}", "length")
        return (200, said)

    with scripted(kind) as server_:
        assert all(teacher_at(server_.url).write(REQUESTS[:8], Journal(tmp_path / "journal")))
    assert len(server_.bodies) == 8 + 2
    assert "m was cut off while it was thinking: it may write 16 times as much now" in capsys.readouterr().out


def test_content_in_chunks_is_joined_and_thoughts_are_not_read(tmp_path) -> None:
    """microsoft/agent-framework/issues/6978"""
    draft = "Ideas:\n1. a draft of a koi\n2. a draft of an owl\n"

    def kind(body: dict):
        good = good_answer(body, len(server_.bodies))
        thinking = {"type": "thinking", "thinking": [{"type": "text", "text": draft}]}
        return (200, completion([thinking, {"type": "text", "text": good[:9]}, {"type": "text", "text": good[9:]}]))

    with scripted(kind) as server_:
        written = teacher_at(server_.url).write(REQUESTS[:8], Journal(tmp_path / "journal"))
    for request, prompts in zip(REQUESTS, written, strict=False):
        assert len(prompts) == 8 and all(f"of {request.intent} number" in prompt for prompt in prompts)


def test_more_fields_of_a_request_are_sent_and_are_part_of_what_was_asked(tmp_path) -> None:
    """QwenLM/Qwen3/issues/1297: a model that thinks unless its template is told not to."""
    request = {"chat_template_kwargs": {"enable_thinking": False}, "max_completion_tokens": 500, "seed": None}
    with ScriptedServer() as server_:
        for asked in (request, request, {}):
            teacher_at(server_.url, request=asked).write(REQUESTS[:1], Journal(tmp_path / "journal"))
    first, plain = server_.bodies
    assert first["chat_template_kwargs"] == {"enable_thinking": False} and first["max_completion_tokens"] == 500
    assert not {"seed", "max_tokens"} & first.keys() and {"seed", "max_tokens"} < plain.keys()


SECRETS = [
    ("teacher_base_urls", ["http://me:secret@host/v1"]),
    ("teacher_base_urls", ["http://sk-secret@host/v1"]),
    ("teacher_base_urls", ["https://host/v1?api_key=sk-secret"]),
    ("teacher_request", {"api_key": "secret"}),
    ("teacher_request", {"extra_headers": {"Authorization": "secret"}}),
    ("teacher_request", {"user": "sk-secret"}),
    ("judge_request", {"token": "secret"}),
    ("baselines", ["openai:m@http://me:secret@host/v1"]),
    ("baselines", ["openai:m@http://host/v1?key=secret"]),
]


@pytest.mark.parametrize(("name", "value"), SECRETS)
def test_secrets_are_refused_and_not_shown(smoke: dict, name: str, value) -> None:
    """xorbitsai/xagent/issues/40, nteract/papermill/issues/271"""
    cls = next(cls for cls in SETTINGS.values() if name in cls.model_fields)
    with pytest.raises(SettingsError, match=f"parameter {name}='...' should .* OPENAI_API_KEY") as caught:
        resolve(cls, smoke | {name: value})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"teacher_base_urls": ["localhost:8000"]},
        {"teacher_base_urls": ["ftp://host/v1"]},
        {"teacher_request": {"messages": []}},
        {"teacher_request": {"stream": True}},
        {"teacher": "local", "teacher_model": "m", "teacher_request": {"reasoning_effort": "low"}},
    ],
)
def test_what_cannot_be_asked_is_one_line(smoke: dict, changes: dict) -> None:
    with pytest.raises(SettingsError, match=f"parameter {list(changes)[-1]}=.* should "):
        resolve(DistillationSettings, smoke | changes)


def test_a_thousand_pairs_arrive_through_a_third_of_faults(smoke: dict) -> None:
    with ScriptedServer(latency=0.005, faulty=0.35) as server_:
        settings, run = served(
            smoke, server_.url, n_intents=200, teacher_timeout=0.5, teacher_concurrency=32, shard_size=80
        )
        counts, usage = distil(settings, run)
    pairs = read_pairs(run)
    assert len(pairs) == counts["kept"] >= 1_000
    assert pairs.prompt.str.fullmatch(r"[a-z ]+ of .+ number \d+ at dawn").all()
    assert counts["asked"] <= counts["kept"] + sum(n for why, n in counts.items() if why not in ("asked", "kept"))
    assert "missing" in counts and {"failed_429", "failed_500", "failed_503", "failed_bad_reply"} <= usage.keys()
    unseen = usage["requests"] - sum(server_.kinds.values())  # sent into a connection that the server was just closing
    lost = usage["failed_connection"] + usage["failed_timeout"] - server_.kinds["cut"] - server_.kinds["hang"]
    assert 0 <= unseen <= lost
    assert sum(n for kind, n in server_.kinds.items() if kind != "good") >= 0.25 * usage["requests"]
    assert cost(usage, [1.0, 10.0]) == pytest.approx((usage["tokens_in"] + 10 * usage["tokens_out"]) / 1e6)
    for file in run.path.rglob("*"):
        assert not file.is_file() or b"sk-secret" not in file.read_bytes()


def test_intents_that_share_a_request_get_their_own_prompts(smoke: dict) -> None:
    with ScriptedServer(faulty=0.35) as server_:
        settings, run = served(smoke, server_.url, n_intents=120, teacher_intents_per_request=6, teacher_timeout=0.5)
        distil(settings, run)
    pairs = read_pairs(run)
    assert pairs.intent.nunique() >= 70 and len(server_.bodies) < 60
    assert all(f" of {intent} number " in prompt for intent, prompt in zip(pairs.intent, pairs.prompt, strict=True))


@pytest.mark.parametrize("kind", BAD_ANSWERS)
def test_no_row_of_a_bad_answer_is_admitted(smoke: dict, kind: str) -> None:
    settings = resolve(DistillationSettings, smoke)
    body = {"messages": [{"content": 'Intent: "koi pond"\nWrite 8 of them.'}]}
    prompts = parse_reply(bad_answer(kind, body, 1), 8)
    pairs = pd.DataFrame({"intent": "koi pond", "prompt": prompts}, dtype=str)
    kept = pairs.prompt[reject_reasons(pairs, settings) == ""].tolist()
    assert kept == (parse_reply(good_answer(body, 1), 8)[: len(kept)] if kind == "half_list" else [])
    assert kind != "half_list" or kept


def test_requests_go_out_side_by_side_and_no_more_than_allowed(tmp_path) -> None:
    with ScriptedServer(latency=0.1) as server_:
        teacher_at(server_.url, concurrency=8).write(REQUESTS * 2, Journal(tmp_path / "journal"))
    assert server_.most == 8 and len(server_.bodies) == len(REQUESTS)


def test_what_failed_is_asked_again_before_all_others_had_their_turn(tmp_path) -> None:
    def kind(body: dict) -> str:
        return "500" if server_.bodies.count(body) == 1 and server_.bodies.index(body) == 2 else "good"

    with scripted(kind) as server_:
        assert all(teacher_at(server_.url, concurrency=2).write(REQUESTS, Journal(tmp_path / "journal")))
    assert len(server_.bodies) == len(REQUESTS) + 1
    assert server_.bodies.index(server_.bodies[2], 3) < len(REQUESTS)


def test_several_servers_share_the_work_and_one_that_is_down_costs_nothing(tmp_path) -> None:
    with ScriptedServer() as first, ScriptedServer() as second:
        replies = teacher_at(first.url, second.url).write(REQUESTS, Journal(tmp_path / "journal"))
        assert all(replies) and min(len(first.keys), len(second.keys)) >= 15
        replies = teacher_at(first.url, "http://127.0.0.1:9/v1").write(REQUESTS, Journal(tmp_path / "other"))
        assert all(replies)
    assert set(first.keys) == {"Bearer sk-secret-of-the-test"}


def test_single_prompts_have_a_question_each_and_come_back_in_order(tmp_path) -> None:
    def answer(body: dict, number: int) -> str:
        return f"{body['messages'][-1]['content']} seen with seed {body['seed']}"

    with ScriptedServer(faulty=0.2, answer=answer) as server_:
        teacher = teacher_at(server_.url, form="single")
        written = teacher.write(REQUESTS[:5], Journal(tmp_path / "journal"))
        asked = len(server_.bodies)
        assert teacher.write(REQUESTS[:5], Journal(tmp_path / "journal")) == written and len(server_.bodies) == asked
    for request, prompts in zip(REQUESTS, written, strict=False):
        good = [prompt for prompt in prompts if "seen with seed" in prompt]
        assert len(good) >= 4 and all(prompt.startswith(request.intent) for prompt in good)
        assert len(set(good)) == len(good)


def test_a_special_token_in_an_intent_reaches_no_server(tmp_path) -> None:
    with ScriptedServer(answer=lambda body, number: "a koi pond") as server_:
        odd = Request("text_to_image", "koi <|im_end|> </s> pond", 2)
        for form in ("list", "single"):
            teacher_at(server_.url, form=form).write([odd], Journal(tmp_path / form))
    assert not any("<|im_end|>" in json.dumps(body) or "</s>" in json.dumps(body) for body in server_.bodies)


def test_what_a_journal_holds_is_not_asked_again(tmp_path) -> None:
    with ScriptedServer() as server_:
        first = teacher_at(server_.url).write(REQUESTS[:30], Journal(tmp_path / "journal"))
        with (tmp_path / "journal").open("ab") as torn:
            torn.write(b'{"key": "cut off by a kill')
        again = teacher_at(server_.url).write(REQUESTS, Journal(tmp_path / "journal"))
    assert again[:30] == first and len(server_.bodies) == 40
    assert Journal(tmp_path / "journal").usage["requests"] == 40


def test_a_server_that_dies_stops_the_run_and_the_next_run_asks_for_the_rest(smoke: dict, monkeypatch) -> None:
    """bespokelabsai/curator/issues/618"""
    monkeypatch.setattr(server, "ATTEMPTS", 2)
    good = iter(range(30))
    with scripted(lambda body: "cut" if next(good, None) is None else "good") as dying:
        with pytest.raises(RunError, match=r"does not answer requests .* all replies so far are kept: run again"):
            distil(*served(smoke, dying.url, n_intents=60, shard_size=20, teacher_concurrency=4))
        assert len(dying.bodies) < 30 + 2 * (2 * 4 + 4)
    with ScriptedServer() as server_:
        _, usage = distil(*served(smoke, server_.url, n_intents=60, shard_size=20))
    assert len(server_.bodies) == 30 and read_pairs(RunFolder("smoke")).intent.nunique() == 60
    assert not any(name.startswith("left_out") for name in usage)


def test_what_a_finished_shard_lacks_is_asked_for_by_the_next_run(smoke: dict, capsys) -> None:
    """bespokelabsai/curator/issues/226"""
    few = Counter()

    def kind(body: dict):
        few[body["messages"][-1]["content"]] += 1
        flagged = {4: (400, "flagged"), 9: (403, "Your input was flagged by moderation")}
        status, said = flagged.get(len(few), (0, ""))
        return (status, error(said)) if status else "good"

    changes = {"n_intents": 20, "teacher_concurrency": 1}
    with scripted(kind) as server_:
        settings, run = served(smoke, server_.url, **changes)
        counts, usage = distil(settings, run)
        run.finish("01_pairs", settings)
        assert usage["left_out_400"] == usage["left_out_403"] == 1 and counts["missing"] == 16
        assert (
            "2 replies are left out (400 1, 403 1); the next run of notebook 01 asks for them"
            in capsys.readouterr().out
        )
        before = (run / "01_pairs" / "part-00000.parquet").read_bytes()
    distil(*served(smoke, "http://127.0.0.1:9/v1", **changes))
    assert "part-00000.parquet stays without 2 replies: http://127.0.0.1:9/v1 does not" in capsys.readouterr().out
    assert (run / "01_pairs" / "part-00000.parquet").read_bytes() == before and "01_pairs" in run.read()["stages"]
    with ScriptedServer() as server_:
        counts, usage = distil(*served(smoke, server_.url, **changes))
        assert (
            len(server_.bodies) == 2 and counts["missing"] == 0 and not {"left_out_400", "left_out_403"} & usage.keys()
        )
        assert "01_pairs" not in run.read()["stages"], "what was built on the stage is made again"
        distil(*served(smoke, server_.url, **changes))
        assert len(server_.bodies) == 2


def test_a_spent_budget_stops_and_keeps(smoke: dict) -> None:
    with ScriptedServer() as server_:
        with pytest.raises(RunError, match="budget is spent"):
            distil(*served(smoke, server_.url, n_intents=60, shard_size=20, teacher_budget=30))
        assert len(server_.bodies) == 30
        distil(*served(smoke, server_.url, n_intents=60, shard_size=20, teacher_budget=70))
        assert len(server_.bodies) == 60


def test_later_notebooks_share_the_budget_of_the_teacher(smoke: dict) -> None:
    with ScriptedServer() as server_:
        settings, run = served(smoke, server_.url, n_intents=6, teacher_budget=10)
        distil(settings, run)
        run.finish("01_pairs", settings)
        file = run / "06_search" / "_teacher.jsonl"
        assert len(extra_teacher(run).write(REQUESTS[:3], Journal(file))) == 3
        with pytest.raises(RunError, match="raise teacher_budget"):
            extra_teacher(run).write(REQUESTS[:5], Journal(file))
    assert len(server_.bodies) == 10


def test_a_server_that_is_not_there_leaves_nothing_behind(smoke: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "ATTEMPTS", 2)
    settings, run = served(smoke, "http://127.0.0.1:9/v1", n_intents=6)
    with pytest.raises(RunError, match=r"9/v1 does not answer requests to model 'm'; the last fault: .*annot connect"):
        distil(settings, run)
    assert not list((run / "01_pairs").glob("part-*"))


def test_batch_files_are_asked_and_waited_for_after_a_stop(tmp_path, monkeypatch) -> None:
    class Stopped(Exception):
        pass

    async def stop(seconds: float) -> None:
        raise Stopped

    with BatchServer(looks=1, refuse=(2,)) as server_:
        with monkeypatch.context() as patched, pytest.raises((Stopped, ExceptionGroup)):
            patched.setattr(batch.anyio, "sleep", stop)
            teacher_at(server_.url, client=batch.BatchClient).write(REQUESTS, Journal(tmp_path / "journal"))
        journal = Journal(tmp_path / "journal")
        assert journal.batches == {"batch-file-0": len(REQUESTS) - 1}
        written = teacher_at(server_.url, client=batch.BatchClient, budget=100).write(REQUESTS, journal)
    assert len(server_.bodies) == 1 and [name for name in server_.files if name.startswith("file")] == ["file-0"]
    assert [len(prompts) for prompts in written].count(0) == 1 and journal.left_out == {"400": 1}
    assert Journal(tmp_path / "journal").usage["requests"] == len(REQUESTS)
    for request, prompts in zip(REQUESTS, written, strict=True):
        assert all(f"of {request.intent} number" in prompt for prompt in prompts)


def test_a_server_without_batch_files_says_so(tmp_path) -> None:
    with ScriptedServer() as server_, pytest.raises(RunError, match=r"asked by batch files: .*Not found"):
        teacher_at(server_.url, client=batch.BatchClient).write(REQUESTS, Journal(tmp_path / "journal"))


def test_a_corrupt_shard_is_set_aside_and_made_again(smoke: dict, capsys: pytest.CaptureFixture) -> None:
    settings = resolve(DistillationSettings, smoke | {"n_intents": 80, "shard_size": 40})
    run = RunFolder(settings.run).start("01_pairs", settings)
    distil(settings, run)
    file: Path = run / "01_pairs" / "part-00001.parquet"
    whole = file.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:200] + bytes(40) + whole[240:], b""):
        file.write_bytes(broken)
        distil(settings, run)
        assert file.read_bytes() == whole and (run / "01_pairs" / "_part-00001.corrupt").read_bytes() == broken
        assert "part-00001.parquet is corrupt" in capsys.readouterr().out
    assert pairs.read_pairs(run).pair_id.is_unique
