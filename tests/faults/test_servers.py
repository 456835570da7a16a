"""Teachers behind servers that fail: every prompt arrives or is counted, nothing malformed is admitted, nothing is paid
for twice, and nobody waits without need."""

from __future__ import annotations

import time

import pandas as pd
import pytest
from faults.servers import BAD_ANSWERS, ScriptedServer, bad_answer, completion, error, good_answer

from udrl_utils import pairs
from udrl_utils.errors import RunError, SettingsError
from udrl_utils.pairs import ask_teacher, cost, distil, read_pairs, reject_reasons
from udrl_utils.runs import RunFolder
from udrl_utils.settings import DistillationSettings, resolve
from udrl_utils.teachers import OpenAITeacher, server
from udrl_utils.teachers.replies import Journal, Request, parse_reply
from udrl_utils.teachers.server import Budget, ChatClient

REQUESTS = [Request("text_to_image", f"koi pond {k}", 8) for k in range(40)]


def served(smoke: dict, *urls: str, **changes) -> tuple[DistillationSettings, RunFolder]:
    """Settings of a run whose teacher is served at those addresses."""
    served_by = {"teacher": "openai", "teacher_model": "m", "teacher_form": "list", "teacher_base_urls": list(urls)}
    settings = resolve(DistillationSettings, smoke | served_by | {"prompts_per_intent": 8} | changes)
    return settings, RunFolder(settings.run).start("01_pairs", settings)


def teacher_at(*urls: str, concurrency: int = 8, timeout: float = 1.0, budget: int | None = None) -> OpenAITeacher:
    return OpenAITeacher(ChatClient("m", urls, concurrency, timeout), 1.0, 0, Budget(budget))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, outputs) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-the-test")


def test_ten_thousand_pairs_arrive_through_a_third_of_faults(smoke: dict) -> None:
    with ScriptedServer(latency=0.005, faulty=0.35) as server:
        settings, run = served(
            smoke, server.url, n_intents=1700, teacher_timeout=1.0, teacher_concurrency=32, shard_size=600
        )
        counts, usage = distil(settings, run)
    pairs = read_pairs(run)
    assert len(pairs) == counts["kept"] >= 10_000
    assert pairs.prompt.str.fullmatch(r"[a-z ]+ of .+ number \d+ at dawn").all()
    assert counts["asked"] <= counts["kept"] + sum(n for why, n in counts.items() if why not in ("asked", "kept"))
    assert {"missing", "control_characters", "other_script", "markup"} <= counts.keys()
    assert {"failed_429", "failed_500", "failed_503", "failed_timeout", "failed_connection", "failed_bad_reply"} <= (
        usage.keys()
    )
    unseen = usage["requests"] - sum(server.kinds.values())  # sent into a connection that the server was just closing
    lost = usage["failed_connection"] + usage["failed_timeout"] - server.kinds["cut"] - server.kinds["hang"]
    assert 0 <= unseen <= lost
    assert sum(n for kind, n in server.kinds.items() if kind != "good") >= 0.3 * usage["requests"]
    assert cost(usage, [1.0, 10.0]) == pytest.approx((usage["tokens_in"] + 10 * usage["tokens_out"]) / 1e6)
    for file in run.path.rglob("*"):
        assert not file.is_file() or b"sk-secret" not in file.read_bytes()


def test_intents_that_share_a_request_get_their_own_prompts(smoke: dict) -> None:
    with ScriptedServer(faulty=0.35) as server:
        settings, run = served(smoke, server.url, n_intents=120, teacher_intents_per_request=6, teacher_timeout=1.0)
        distil(settings, run)
    pairs = read_pairs(run)
    assert pairs.intent.nunique() >= 70 and len(server.bodies) < 60
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
    latency, concurrency = 0.25, 8
    with ScriptedServer(latency) as server:
        started = time.monotonic()
        teacher_at(server.url, concurrency=concurrency).write(REQUESTS * 2, Journal(tmp_path / "journal"))
        ideal, took = len(REQUESTS) / concurrency * latency, time.monotonic() - started
    assert server.most == concurrency
    assert took < ideal / 0.5  # the benchmark says how near it really comes


def test_what_failed_is_asked_again_before_all_others_had_their_turn(tmp_path) -> None:
    class Stumbling(ScriptedServer):
        def kind(self, body: dict) -> str:
            return "500" if self.bodies.count(body) == 1 and body == self.bodies[0] else "good"

    with Stumbling(latency=0.1) as server:
        assert all(teacher_at(server.url, concurrency=2).write(REQUESTS, Journal(tmp_path / "journal")))
    assert len(server.bodies) == len(REQUESTS) + 1
    assert server.bodies.index(server.bodies[0], 1) < len(REQUESTS) / 2


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

    with ScriptedServer(faulty=0.2, answer=answer) as server:
        teacher = OpenAITeacher(ChatClient("m", [server.url], 8, 1.0), 0.9, 7, Budget(None), "single")
        written = teacher.write(REQUESTS[:5], Journal(tmp_path / "journal"))
        asked = len(server.bodies)
        assert teacher.write(REQUESTS[:5], Journal(tmp_path / "journal")) == written and len(server.bodies) == asked
    for request, prompts in zip(REQUESTS, written, strict=False):
        good = [prompt for prompt in prompts if "seen with seed" in prompt]
        assert len(good) >= 4 and all(prompt.startswith(request.intent) for prompt in good)
        assert len(set(good)) == len(good)


def test_what_a_journal_holds_is_not_asked_again(tmp_path) -> None:
    with ScriptedServer() as server:
        first = teacher_at(server.url).write(REQUESTS[:30], Journal(tmp_path / "journal"))
        with (tmp_path / "journal").open("ab") as torn:
            torn.write(b'{"key": "cut off by a kill')
        again = teacher_at(server.url).write(REQUESTS, Journal(tmp_path / "journal"))
    assert again[:30] == first and len(server.bodies) == 40
    assert Journal(tmp_path / "journal").usage["requests"] == 40


def test_a_spent_budget_stops_and_keeps(smoke: dict) -> None:
    with ScriptedServer() as server:
        with pytest.raises(RunError, match="budget is spent"):
            distil(*served(smoke, server.url, n_intents=60, shard_size=20, teacher_budget=30))
        assert len(server.bodies) == 30
        distil(*served(smoke, server.url, n_intents=60, shard_size=20, teacher_budget=70))
        assert len(server.bodies) == 60


def test_a_schema_is_sent_and_done_without_where_it_is_refused(tmp_path) -> None:
    with ScriptedServer() as server:
        teacher_at(server.url).write(REQUESTS[:2], Journal(tmp_path / "journal"))
        assert server.bodies[0]["response_format"]["json_schema"]["schema"]["properties"]["prompts"]["maxItems"] == 8

    class Older(ScriptedServer):
        def kind(self, body: dict) -> str:
            kind = "400" if "response_format" in body else "good"
            self.kinds[kind] += 1
            return kind

    with Older() as server:
        replies = teacher_at(server.url, concurrency=8).write(REQUESTS, Journal(tmp_path / "other"))
    assert all(replies) and server.kinds["400"] <= 8 and server.kinds["good"] == len(REQUESTS)


def scripted(answer_to) -> ScriptedServer:
    """A server that answers by a function from a request's body to a kind."""
    server = ScriptedServer()
    server.kind = answer_to
    return server


REFUSALS = [
    (401, "Incorrect API key provided: sk-secret-of-the-test", None, r"answers 401 .* OPENAI_API_KEY"),
    (404, "The model `m` does not exist.", None, r"answers 404 to model 'm': The model `m` does not exist"),
    (429, "You exceeded your current quota", "insufficient_quota", r"answers 429 .*: You exceeded your current quota"),
]


@pytest.mark.parametrize(("status", "message", "code", "line"), REFUSALS)
def test_a_server_that_refuses_is_asked_once_and_says_why(tmp_path, status, message, code, line) -> None:
    with scripted(lambda body: (status, error(message, code))) as server:
        with pytest.raises(RunError, match=line) as caught:
            teacher_at(server.url).write(REQUESTS, Journal(tmp_path / "journal"))
        assert len(server.bodies) == 1
    assert "sk-secret" not in str(caught.value) + (tmp_path / "journal").read_text()
    assert f'"error": "{status}", "said": "{message[:20]}' in (tmp_path / "journal").read_text()


def test_an_address_that_holds_a_secret_or_is_none_is_refused(smoke: dict) -> None:
    for url in ("localhost:8000", "http://me:secret@host/v1", "ftp://host/v1"):
        with pytest.raises(SettingsError, match="teacher_base_urls"):
            served(smoke, url)


def refuses_max_tokens(body: dict):
    said = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    return (400, error(said)) if "max_tokens" in body else "good"


def refuses_seed(body: dict):
    extra = {"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}
    return (422, {"detail": [extra]}) if "seed" in body else "good"


def refuses_system(body: dict):
    roles = [turn["role"] for turn in body["messages"]]
    return (500, error("System role not supported")) if "system" in roles else "good"


def refuses_temperature(body: dict):
    return (400, error("'temperature' does not support 0.9 with this model")) if "temperature" in body else "good"


def refuses_all(body: dict):
    return next(
        (a for a in (refuses_max_tokens(body), refuses_seed(body), refuses_system(body)) if a != "good"), "good"
    )


@pytest.mark.parametrize(
    ("refuses", "attempts", "told"),
    [
        (refuses_max_tokens, 1, "max_tokens is sent as max_completion_tokens; the server said: Unsupported"),
        (refuses_seed, 1, "no seed is sent; the server said: [{"),
        (refuses_system, 1, "the user's turn has the system text; the server said: System role"),
        (refuses_temperature, 1, "no temperature is sent"),
        (refuses_all, 3, "no seed is sent"),
    ],
)
def test_what_a_server_refuses_is_changed_once_and_told(tmp_path, capsys, refuses, attempts: int, told: str) -> None:
    with scripted(refuses) as server:
        assert all(teacher_at(server.url).write(REQUESTS, Journal(tmp_path / "journal")))
    assert len(server.bodies) == len(REQUESTS) + attempts
    assert told in capsys.readouterr().out
    sent = server.bodies[-1]
    text = "".join(turn["content"] for turn in sent["messages"])
    assert text.startswith(server.bodies[0]["messages"][0]["content"])
    assert {"max_tokens", "max_completion_tokens"} & sent.keys() and refuses(sent) == "good"


def test_a_server_that_refuses_every_request_is_asked_a_few_times_only(tmp_path) -> None:
    line = r"answered none of the requests .*; the last fault: 400 context too long"
    with scripted(lambda body: (400, error("context too long"))) as server, pytest.raises(RunError, match=line):
        teacher_at(server.url).write(REQUESTS, Journal(tmp_path / "journal"))
    assert len(server.bodies) == 4  # the first also without its schema


@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        (completion(None), "empty"),
        (completion("", reasoning_content="Let me think."), "empty"),
        (completion("<think>Perhaps 1. a koi 2. an owl</think>"), "empty"),
        (completion('["a koi pond", "a koi', "length"), "cut"),
        (completion("a koi", "content_filter"), "filtered"),
    ],
)
def test_a_reply_that_answers_nothing_is_counted_and_asked_again(tmp_path, reply: dict, fault: str) -> None:
    bad = REQUESTS[5].intent
    journal = Journal(tmp_path / "journal")
    with scripted(lambda body: (200, reply) if f'"{bad}"' in body["messages"][-1]["content"] else "good") as server:
        written = teacher_at(server.url).write(REQUESTS, journal)
        asked = server.bodies[:]
    assert [request.intent for request, prompts in zip(REQUESTS, written, strict=True) if not prompts] == [bad]
    assert journal.usage[f"failed_{fault}"] == 1 and len(asked) == len(REQUESTS)
    assert journal.usage["tokens_out"] == 20 * len(REQUESTS), "what was written was paid for"
    with ScriptedServer() as server:
        again = teacher_at(server.url).write(REQUESTS, Journal(tmp_path / "journal"))
    assert all(again) and len(server.bodies) == 1
    assert server.bodies[0]["max_tokens"] == 4 * asked[0]["max_tokens"]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", None])
def test_a_model_that_thinks_longer_than_it_may_write_gets_more_room(tmp_path, capsys, field: str | None) -> None:
    def kind(body: dict):
        if body["max_tokens"] > 4 * 960:
            return "good"
        thoughts = "The user wants prompts. 1. a koi 2. an owl"
        said = completion(None, "length", **{field: thoughts}) if field else completion(f"<think>{thoughts}", "length")
        return (200, said)

    with scripted(kind) as server:
        assert all(teacher_at(server.url).write(REQUESTS, Journal(tmp_path / "journal")))
    assert len(server.bodies) == len(REQUESTS) + 2
    assert "m was cut off while it was thinking: it may write 16 times as much now" in capsys.readouterr().out


def test_content_in_chunks_is_joined_and_thoughts_are_no_prompts(tmp_path) -> None:
    draft = "Ideas:\n1. a draft of a koi\n2. a draft of an owl\n"

    def kind(body: dict):
        good = good_answer(body, len(server.bodies))
        chunks = [{"type": "thinking", "thinking": [{"type": "text", "text": draft}]}, {"type": "text", "text": good}]
        forms = (chunks, f"<think>{draft}</think>{good}", f"{draft}</think>\n{good}", f"<think>{draft}</think>\n{good}")
        return (200, completion(forms[len(server.bodies) % len(forms)]))

    with scripted(kind) as server:
        written = teacher_at(server.url).write(REQUESTS, Journal(tmp_path / "journal"))
    for request, prompts in zip(REQUESTS, written, strict=True):
        assert len(prompts) == 8 and all(f"of {request.intent} number" in prompt for prompt in prompts)


def test_later_notebooks_share_the_budget_of_the_teacher(smoke: dict) -> None:
    with ScriptedServer() as server:
        settings, run = served(smoke, server.url, n_intents=6, teacher_budget=10)
        distil(settings, run)
        run.finish("01_pairs", settings)
        file = run / "06_search" / "_teacher.jsonl"
        assert len(ask_teacher(run, REQUESTS[:3], file)) == 3
        with pytest.raises(RunError, match="raise teacher_budget"):
            ask_teacher(run, REQUESTS[:5], file)
    assert len(server.bodies) == 10


def test_a_server_that_is_not_there_leaves_nothing_behind(smoke: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "ATTEMPTS", 2)
    settings, run = served(smoke, "http://127.0.0.1:9/v1", n_intents=6)
    line = r"9/v1 answered none of the requests to model 'm' \(failed_connection 6\); the last fault: .*annot connect"
    with pytest.raises(RunError, match=line):
        distil(settings, run)
    assert not list((run / "01_pairs").glob("part-*"))


def test_a_corrupt_shard_is_set_aside_and_made_again(smoke: dict, capsys: pytest.CaptureFixture) -> None:
    settings = resolve(DistillationSettings, smoke | {"n_intents": 80, "shard_size": 40})
    run = RunFolder(settings.run).start("01_pairs", settings)
    distil(settings, run)
    file = run / "01_pairs" / "part-00001.parquet"
    whole = file.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:200] + bytes(40) + whole[240:], b""):
        file.write_bytes(broken)
        distil(settings, run)
        assert file.read_bytes() == whole and (run / "01_pairs" / "_part-00001.corrupt").read_bytes() == broken
        assert "part-00001.parquet is corrupt" in capsys.readouterr().out
    assert pairs.read_pairs(run).pair_id.is_unique
