"""A client of servers that speak the OpenAI chat protocol: vLLM, Ollama, `transformers serve`, hosted services.

Questions go in, replies come out in the same order, and every attempt is counted and kept in the journal. The OpenAI
SDK repeats what fails and waits in between. Nothing here knows what a reply is for: teachers and judges both ask here.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import openai
from anyio.from_thread import start_blocking_portal

from udrl_utils.errors import RunError
from udrl_utils.teachers.replies import Journal, key_of, without_system, without_thoughts

ATTEMPTS = 8  # per question
PROBES = 3  # questions that are asked one after the other until a server has answered one of them
REST = 20  # turns that a server is left out after it could not be reached
MOST_ROOM = 16  # a model that thinks may write this many times the tokens that its answer needs
FAULTS = {"length": "cut", "content_filter": "filtered"}  # finish reasons of replies that are no answer
LONGEST_REPLY = 200_000  # characters; the rest is dropped
LONGEST_BODY = 2_000_000  # bytes; a longer response is not read
KEY = "X-Client-Request-Id"  # header with the key of a question
# What servers refuse, how they say so, and what is done about it.
ADAPTATIONS = {
    "max_tokens": (r"max_completion_tokens", "max_tokens is sent as max_completion_tokens"),
    "seed": (r"\bseed\b", "no seed is sent"),
    "temperature": (r"\btemperature\b", "no temperature is sent"),
    "system": (
        r"system role|system message|role.{0,9}system|roles must alternate",
        "the user's turn has the system text",
    ),
}


@dataclass(frozen=True)
class Question:
    """A chat to be continued, and how: messages, sampling options, the JSON schema that the reply should have."""

    messages: list[dict[str, str]]
    options: dict[str, Any] = field(default_factory=dict)
    schema: dict[str, Any] | None = None

    def key(self, model: str) -> str:
        """The same model, messages and options have the same key."""
        return key_of(model, self.messages, self.options)


class Budget:
    """Requests that may still be made, failed ones included; None for any number. `parameter` is what limits them."""

    def __init__(self, requests: int | None, parameter: str = "teacher_budget"):
        self.left, self.parameter = requests, parameter

    def spend(self) -> None:
        """Raises: RunError when nothing is left."""
        if self.left is not None:
            if self.left <= 0:
                raise RunError(
                    f"the request budget is spent and all replies so far are kept: raise {self.parameter} and run again"
                )
            self.left -= 1


class ChatClient:
    """Asks a model on one server, or on several in turn, with at most `concurrency` requests under way.

    What a server refuses is changed for all later requests where that is possible, and a line says so. The key comes
    from OPENAI_API_KEY and nowhere else.
    """

    def __init__(self, model: str, base_urls: Sequence[str], concurrency: int, timeout: float):
        self.model, self.base_urls = model, list(base_urls)
        self.concurrency, self.timeout = concurrency, timeout
        self.adapted: frozenset[str] = frozenset()  # names of ADAPTATIONS, and schema
        self.room = 1  # times max_tokens
        self.said = ""  # what a server last said of a request that failed

    def ask(self, questions: Sequence[Question], journal: Journal, budget: Budget) -> list[str | None]:
        """Replies in the order of the questions, None where none came; what the journal holds is not asked again.

        Raises: RunError when the servers refuse the key or the model or answer nothing, or when the budget is spent.
        """
        keys = [question.key(self.model) for question in questions]
        new = {key: q for key, q in zip(keys, questions, strict=True) if not journal.replies.get(key)}
        known = len(new) < len(set(keys))
        if new:
            with start_blocking_portal() as portal:  # a notebook's own event loop is already running
                portal.call(self._ask_all, new, journal, budget, known)
        replies = [journal.replies.get(key) for key in keys]
        if questions and not any(replies):
            faults = ", ".join(f"{name} {n}" for name, n in journal.usage.items() if name.startswith("failed_"))
            where = " and ".join(self.base_urls) or "the server"
            raise RunError(
                f"{where} answered none of the requests to model {self.model!r} ({faults}); the last fault: {self.said}"
            )
        return replies

    async def _ask_all(self, new: dict[str, Question], journal: Journal, budget: Budget, known: bool) -> None:
        todo, stopped = iter(new.items()), []

        async def work(questions: Iterator[tuple[str, Question]]) -> None:
            for key, question in questions:
                if stopped:  # requests under way may still be answered; no new ones are made
                    return
                try:
                    await self._answer(sdk, key, question, journal)
                except RunError as error:
                    stopped.append(error)

        async with openai.AsyncOpenAI(
            api_key=os.environ.get("OPENAI_API_KEY", "none"),
            base_url=next(iter(self.base_urls), None),
            max_retries=ATTEMPTS - 1,
            timeout=self.timeout,
            http_client=Attempts(self, journal, budget),
        ) as sdk:
            for probe in itertools.islice(todo, 0 if known else PROBES):
                await work(iter([probe]))
                known = probe[0] in journal.replies
                if known or stopped:
                    break
            if known and not stopped:
                async with anyio.create_task_group() as group:
                    for _ in range(self.concurrency):
                        group.start_soon(work, todo)
        if stopped:
            raise stopped[0]

    async def _answer(self, sdk: openai.AsyncOpenAI, key: str, question: Question, journal: Journal) -> None:
        """Ask until there is an answer, or no other way to ask. Raises: RunError where nobody would be answered."""
        while True:
            adapted, room = self.adapted, min(max(self.room, 4 ** journal.unanswered[key]), MOST_ROOM)
            body, headers = self._body(question, room), {KEY: key}
            try:
                reply = await sdk.post("/chat/completions", cast_to=object, body=body, options={"headers": headers})
            except openai.APIStatusError as error:
                if self.refused(error.response):
                    address = str(error.request.url).removesuffix("/chat/completions")
                    said = f"{address} answers {error.status_code} to model {self.model!r}: {words_of(error.response)}"
                    check = "check the model's name, the address, the environment variable OPENAI_API_KEY and the quota"
                    raise RunError(f"{said} ({check})") from None
                if adapted == self.adapted and not self._adapt(error.response, question):
                    return
                continue
            except openai.OpenAIError:
                return
            text, reason, tokens = read_completion(reply)
            answer = without_thoughts(text)
            if answer and reason not in FAULTS:
                journal.add_reply(key, text, *tokens)
                return
            self.said = f"a reply {'that is not finished' if answer else 'without text'}, finish_reason {reason}"
            journal.add_failure(key, FAULTS.get(reason, "empty"), self.said, *tokens)
            if answer or reason != "length" or room == MOST_ROOM:
                return  # the next run asks again
            if self.room < 4 * room:
                self.room = 4 * room
                print(f"{self.model} was cut off while it was thinking: it may write {self.room} times as much now")

    def _body(self, question: Question, room: int) -> dict[str, Any]:
        options = {name: value for name, value in question.options.items() if name not in self.adapted}
        if "max_tokens" in question.options:
            limit = "max_completion_tokens" if "max_tokens" in self.adapted else "max_tokens"
            options[limit] = room * question.options["max_tokens"]
        chat = without_system(question.messages) if "system" in self.adapted else question.messages
        if question.schema and "schema" not in self.adapted:
            form = {"name": "reply", "strict": True, "schema": question.schema}
            options["response_format"] = {"type": "json_schema", "json_schema": form}
        return {"model": self.model, "messages": chat, **options}

    def refused(self, response: Any) -> bool:
        """Whether a response says that no request will be answered: a refused key, an unknown model, no quota left."""
        return response.status_code in (401, 403, 404) or "insufficient_quota" in response.text

    def adaptation(self, response: Any) -> str:
        """Name of the adaptation that a response asks for and that has not been made; '' for none."""
        if response.status_code not in (400, 413, 422, 500):
            return ""
        said, left = words_of(response), ADAPTATIONS.keys() - self.adapted
        return next((name for name in ADAPTATIONS if name in left and re.search(ADAPTATIONS[name][0], said, re.I)), "")

    def _adapt(self, response: Any, question: Question) -> bool:
        """Whether another way to ask is left; it is taken from now on."""
        name, told = self.adaptation(response), "no JSON schema is sent"
        if name:
            told = ADAPTATIONS[name][1]
        elif question.schema and "schema" not in self.adapted and response.status_code in (400, 413, 422):
            name = "schema"
        else:
            return False
        self.adapted |= {name}
        print(f"{self.model}: {told}; the server said: {words_of(response)}", flush=True)
        return True


class Attempts(openai.DefaultAioHttpClient):
    """Where the SDK sends requests: each attempt is paid from the budget, goes to the next server, and is kept in the
    journal if it fails."""

    def __init__(self, client: ChatClient, journal: Journal, budget: Budget):
        super().__init__()
        self.client, self.journal, self.budget = client, journal, budget
        self.turns = dict.fromkeys(client.base_urls, 0)  # by address; the one with the fewest is next

    async def send(self, request: Any, **how: Any) -> Any:
        """The response, read to its end; one that is no chat completion has the status 502, which the SDK repeats."""
        self.budget.spend()
        address = min(self.turns, key=self.turns.get, default=None)
        if address:
            self.turns[address] += 1
            request.url = type(request.url)(f"{address.rstrip('/')}/chat/completions")
            request.headers["Host"] = request.url.netloc.decode()
        try:
            response = await super().send(request, **how | {"stream": True})
            if int(response.headers.get("content-length", 0)) > LONGEST_BODY:
                await response.aclose()
                response = type(response)(200, text=f"more than {LONGEST_BODY} bytes", request=request)
            await response.aread()
        except Exception as error:
            kind = type(error).__name__
            # what the transport calls a ConnectTimeout is also a server that hangs up
            fault = "timeout" if kind in ("ReadTimeout", "WriteTimeout") else "connection"
            self._failed(request, fault, one_line(str(error) or kind))
            if address:
                self.turns[address] += REST
            raise
        fault = str(response.status_code)
        if response.is_success:
            try:
                read_completion(response.json())
                response.headers["content-type"] = "application/json"  # else the SDK does not read it
                return response
            except (AttributeError, LookupError, TypeError, ValueError):
                fault, response.status_code = "bad_reply", 502
        elif self.client.refused(response) or self.client.adaptation(response):
            response.headers["x-should-retry"] = "false"
        self._failed(request, fault, words_of(response))
        return response

    def _failed(self, request: Any, error: str, said: str) -> None:
        self.client.said = f"{error} {said}"
        self.journal.add_failure(request.headers[KEY], error, said)


def read_completion(body: Any) -> tuple[str, str, tuple[int, int]]:
    """Text of a chat completion, why it ended, and its tokens (in, out).

    Raises: AttributeError, LookupError, TypeError or ValueError for what is no chat completion.
    """
    choice, usage = body["choices"][0], body.get("usage") or {}
    content = choice["message"].get("content") or ""
    if not isinstance(content, str):  # chunks, of which thoughts have no text
        content = "".join(chunk.get("text") or "" for chunk in content)
    tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    return content[:LONGEST_REPLY], str(choice.get("finish_reason")), tokens


def words_of(response: Any) -> str:
    """What a server said, in one line and without the key."""
    try:
        said = response.json()
        for name in ("error", "message", "detail"):
            said = said.get(name, said) if isinstance(said, dict) else said
    except ValueError:
        said = response.text
    return one_line(said if isinstance(said, str) else json.dumps(said))


def one_line(said: str) -> str:
    """The beginning of a text from outside, in one line and without the key."""
    said = re.sub(r"\bsk-[\w*-]+", "<key>", said.replace(os.environ.get("OPENAI_API_KEY") or "<key>", "<key>"))
    return " ".join("".join(letter if letter.isprintable() else " " for letter in said).split())[:300]
