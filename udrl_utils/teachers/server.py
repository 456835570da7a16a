"""A client of servers that speak the OpenAI chat protocol: vLLM, Ollama, `transformers serve`, hosted services.

Questions go in, replies come out in the same order, and every attempt is counted and kept in the journal. The OpenAI
SDK repeats what fails and waits in between. Nothing here knows what a reply is for: teachers and judges both ask here.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import openai
from anyio.from_thread import start_blocking_portal

from udrl_utils.errors import RunError
from udrl_utils.teachers.replies import Chat, Journal, first_turn, key_of, without_system

ATTEMPTS = 8  # per question
PROBES = 3  # questions that are asked one after the other until a server has answered one of them
REST = 20  # turns that a server is left out after it could not be reached
MOST_ROOM = 16  # a model that thinks may write this many times the tokens that its answer needs
FAULTS = {  # finish reasons of replies that answer nothing, by the servers' several names for them
    **dict.fromkeys(("length", "max_tokens", "model_length", "max_output_tokens", "error"), "cut"),
    **dict.fromkeys(("content_filter", "safety", "refusal", "recitation", "prohibited_content"), "filtered"),
}
LONGEST_REPLY = 200_000  # characters; the rest is dropped
KEY = "X-Client-Request-Id"  # header with the key of a question
REFUSALS = (400, 403, 413, 422)  # of one question, or of the way in which it is asked
NEVER = re.compile(r'"insufficient_quota"|billing_hard_limit|credit balance|api[ _]key not valid', re.I)
FLAGGED = re.compile(r"\bflagged\b|moderation|content[ _](?:filter|policy)", re.I)  # of a 403: this question only
WINDOW = re.compile(
    r"context[ _](?:length|window|size)|maximum (?:context|model|sequence) len|prompt.{0,40}too long"
    r"|exceeds?.{0,40}limit of|too many tokens",
    re.I,
)
# What servers refuse, how they say so, and what is done about it.
ADAPTATIONS = {
    "max_tokens": (r"max_completion_tokens", "max_tokens is sent as max_completion_tokens"),
    "seed": (r"\bseed\b", "no seed is sent"),
    "temperature": (r"\btemperature\b", "no temperature is sent"),
    "system": (
        r"system role|system message|role.{0,9}system|roles must alternate|only user and assistant"
        r"|'user' or 'assistant'|developer instruction",
        "the user's turn has the system text",
    ),
    "schema": (r"response_format|json_schema|grammar", "no JSON schema is sent"),
}
MALFORMED = (AttributeError, LookupError, TypeError, ValueError)  # raised for what is not a chat completion


Budget = int | Callable[[int], int] | None  # requests that may be made, or what takes some and says how many are left


@dataclass(frozen=True)
class Question:
    """A chat to be continued, and how: messages, sampling options, the JSON schema that the reply should have."""

    messages: Chat
    options: dict[str, Any]
    schema: dict[str, Any] | None = None

    def key(self, model: str) -> str:
        """The same model, messages and options have the same key."""
        return key_of(model, self.messages, self.options)


def options_of(defaults: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Fields of a request: the defaults, replaced by what the user's own request says; its null leaves a field out."""
    options = defaults | request
    if "max_completion_tokens" in request:
        del options["max_tokens"]
    return {name: value for name, value in options.items() if value is not None}


class TooLong(RunError):
    """A question does not fit into the context window of the model."""


@dataclass(eq=False)
class ChatClient:
    """Asks a model on one server, or on several in turn, with at most `concurrency` requests under way.

    The first question is asked alone, so that a server that cannot answer costs one request. What a server refuses is
    changed for all later requests where that is possible, and a line says so. The key comes from OPENAI_API_KEY alone.
    `budget` is how many requests may be made, failed ones included, or None for any number; <who>_budget sets it. It
    may be a function too, that takes some from a budget of several processes and says how many are left.
    """

    model: str
    base_urls: Sequence[str]
    concurrency: int
    timeout: float
    budget: Budget = None
    who: str = "teacher"
    adapted: frozenset[str] = frozenset()  # names of ADAPTATIONS
    room: int = 1  # times the token limit
    proven: bool = False  # whether a server has answered a question
    silent: int = 0  # questions in a row that got no reply after all attempts

    @property
    def where(self) -> str:
        """The servers, as an error names them."""
        return " and ".join(self.base_urls) or "the server"

    def ask(self, questions: Sequence[Question], journal: Journal) -> list[str | None]:
        """Replies in the order of the questions, None where none came; what the journal holds is not asked again.

        `journal.left_out` then counts the questions without a reply by their last fault.
        Raises: TooLong when a question does not fit the model; RunError when the servers refuse the key or the model,
        stop answering or answer nothing, or when the budget is spent.
        """
        asked = {question.key(self.model): question for question in questions}
        new = {key: question for key, question in asked.items() if not journal.replies.get(key)}
        if new:
            with start_blocking_portal() as portal:  # a notebook's own event loop is already running
                portal.call(self._ask, new, journal, len(new) < len(asked))
        journal.left_out = Counter(journal.faults.get(key, "unasked") for key in new if not journal.replies.get(key))
        replies = [journal.replies.get(question.key(self.model)) for question in questions]
        if questions and not any(replies):
            faults = ", ".join(f"{name} {n}" for name, n in journal.usage.items() if name.startswith("failed_"))
            kind = TooLong if WINDOW.search(journal.said) else RunError
            raise kind(
                f"{self.where} answered none of the requests to model {self.model!r} ({faults}); the last fault: "
                f"{journal.said}"
            )
        return replies

    def spend(self, requests: int = 1) -> None:
        """Take requests from the budget. Raises: RunError when less is left."""
        if self.budget is None:
            return
        left = self.budget(requests) if callable(self.budget) else self.budget - requests
        if left < 0:
            kept = "the request budget is spent and all replies so far are kept"
            raise RunError(f"{kept}: raise {self.who}_budget and run again")
        if not callable(self.budget):
            self.budget = left

    async def _ask(self, new: dict[str, Question], journal: Journal, known: bool) -> None:
        async with openai.AsyncOpenAI(
            api_key=os.environ.get("OPENAI_API_KEY", "none"),
            base_url=next(iter(self.base_urls), None),
            max_retries=ATTEMPTS - 1,
            timeout=self.timeout,
            http_client=Attempts(self, journal),
        ) as sdk:
            await self._ask_all(sdk, new, journal, known)

    async def _ask_all(self, sdk: openai.AsyncOpenAI, new: dict[str, Question], journal: Journal, known: bool) -> None:
        """Ask until a server has answered, then all the rest; `known` says that earlier runs were answered."""
        todo = iter(new.items())
        for key, question in itertools.islice(todo, 0 if self.proven else 1 if known else PROBES):
            await self._answer(sdk, key, question, journal)
            if self.proven or WINDOW.search(journal.said):
                break
        if self.proven or known:
            await self._ask_rest(sdk, dict(todo), journal)

    async def _ask_rest(self, sdk: openai.AsyncOpenAI, new: dict[str, Question], journal: Journal) -> None:
        """Ask questions side by side."""
        todo, stopped = iter(new.items()), []

        async def work() -> None:
            for key, question in todo:
                if stopped:  # requests under way may still be answered; no new ones are made
                    return
                try:
                    await self._answer(sdk, key, question, journal)
                except RunError as error:
                    stopped.append(error)

        async with anyio.create_task_group() as group:
            for _ in range(self.concurrency):
                group.start_soon(work)
        if stopped:
            raise stopped[0]

    async def _answer(self, sdk: openai.AsyncOpenAI, key: str, question: Question, journal: Journal) -> None:
        """Ask until there is an answer, or no other way to ask. Raises: RunError where nobody would be answered."""
        while True:
            adapted, room = self.adapted, min(max(self.room, 4 ** journal.unanswered[key]), MOST_ROOM)
            body, headers = self.body(question, room), {KEY: key}
            try:
                reply = await sdk.post("/chat/completions", cast_to=object, body=body, options={"headers": headers})
            except openai.APIStatusError as error:
                if refused(error.response):
                    address = str(error.request.url).removesuffix("/chat/completions")
                    said = f"{address} answers {error.status_code} to model {self.model!r}: {words_of(error.response)}"
                    check = "check the model's name, the address, the environment variable OPENAI_API_KEY and the quota"
                    raise RunError(f"{said} ({check})") from None
                if adapted != self.adapted:  # by an answer to another question
                    continue
                if name := self.adaptation(error.response):
                    self.adapted |= {name}
                    said = f"{ADAPTATIONS[name][1]}; the server said: {words_of(error.response)}"
                    print(f"{self.model}: {said}", flush=True)
                    continue
                if error.status_code in REFUSALS:  # an answer to this question only
                    return
                return self._count_silence(journal)
            except openai.OpenAIError:
                return self._count_silence(journal)
            self.silent = 0
            fault = keep_reply(reply, key, journal)
            if not fault:
                self.proven = True
            if fault != "thinking" or room == MOST_ROOM:
                return  # the next run asks again where nothing was answered
            if self.room < 4 * room:
                self.room = 4 * room
                print(f"{self.model} was cut off while it was thinking: it may write {self.room} times as much now")

    def _count_silence(self, journal: Journal) -> None:
        """Raises: RunError when the servers have left a first question, or many in a row, without an answer."""
        self.silent += 1
        if not self.proven or self.silent >= 2 * self.concurrency:
            raise RunError(
                f"{self.where} does not answer requests to model {self.model!r}; the last fault: {journal.said}; all "
                "replies so far are kept: run again when the server answers"
            )

    def body(self, question: Question, room: int) -> dict[str, Any]:
        """A request as it is sent, with `room` times the tokens for its reply."""
        options = {}
        for name, value in question.options.items():
            if name in ("max_tokens", "max_completion_tokens"):
                options["max_completion_tokens" if "max_tokens" in self.adapted else name] = room * value
            elif name not in self.adapted:
                options[name] = value
        chat = without_system(question.messages) if "system" in self.adapted else question.messages
        if question.schema and "schema" not in self.adapted:
            form = {"name": "reply", "strict": True, "schema": question.schema}
            options["response_format"] = {"type": "json_schema", "json_schema": form}
        return {"model": self.model, "messages": chat, **options}

    def adaptation(self, response: Any) -> str:
        """Name of the adaptation that a response asks for and that has not been made; '' for none."""
        said = words_of(response)
        if response.status_code not in (*REFUSALS, 500) or WINDOW.search(said):
            return ""
        for name, (pattern, _) in ADAPTATIONS.items():
            if name not in self.adapted and re.search(pattern, said, re.I):
                return name
        schema = b'"response_format"' in response.request.content and "schema" not in self.adapted
        return "schema" if schema and response.status_code != 500 else ""  # many servers do not name what they refuse


class Attempts(openai.DefaultAioHttpClient):
    """Where the SDK sends requests: each attempt at a question is paid from the budget, goes to the next server, and is
    kept in the journal if it fails."""

    def __init__(self, client: ChatClient, journal: Journal):
        super().__init__()
        self.client, self.journal = client, journal
        self.turns = dict.fromkeys(client.base_urls, 0)  # by address; the one with the fewest is next

    async def send(self, request: Any, **how: Any) -> Any:
        """The response; one that should be a chat completion and is none has the status 502, which the SDK repeats."""
        if KEY not in request.headers:  # batch files
            return await super().send(request, **how)
        self.client.spend()
        address = min(self.turns, key=self.turns.get, default=None)
        if address:
            self.turns[address] += 1
            request.url = type(request.url)(f"{address.rstrip('/')}/chat/completions")
            request.headers["Host"] = request.url.netloc.decode()
        try:
            response = await super().send(request, **how)
        except Exception as error:
            kind = type(error).__name__
            # what the transport calls a ConnectTimeout is also a server that hangs up
            fault = "timeout" if kind in ("ReadTimeout", "WriteTimeout") else "connection"
            self.journal.add(key=request.headers[KEY], error=fault, said=one_line(str(error) or kind))
            if address:
                self.turns[address] += REST
            raise
        fault = str(response.status_code)
        if response.is_success:
            try:
                read_completion(response.json())
                response.headers["content-type"] = "application/json"  # else the SDK does not read it
                return response
            except MALFORMED:
                fault, response.status_code = "bad_reply", 502
        elif refused(response) or self.client.adaptation(response):
            response.headers["x-should-retry"] = "false"
        self.journal.add(key=request.headers[KEY], error=fault, said=words_of(response))
        return response


def refused(response: Any) -> bool:
    """Whether a response says that no request will be answered: a refused key, an unknown model, no quota left."""
    if response.status_code == 403 and FLAGGED.search(response.text):
        return False
    return response.status_code in (401, 402, 403, 404) or bool(NEVER.search(response.text))


def read_completion(body: Any) -> tuple[str, str, dict[str, int]]:
    """Text of a chat completion, why it ended, and its tokens as the journal counts them.

    Raises: an error of MALFORMED for what is not a chat completion.
    """
    choice, usage = body["choices"][0], body.get("usage") or {}
    content = choice["message"].get("content") or ""
    if not isinstance(content, str):  # chunks, of which thoughts have no text
        content = "".join(chunk.get("text") or "" for chunk in content)
    spent = {"tokens_in": usage.get("prompt_tokens"), "tokens_out": usage.get("completion_tokens")}
    tokens = {name: int(number or 0) for name, number in spent.items()}
    return content[:LONGEST_REPLY], str(choice.get("finish_reason")).lower(), tokens


def keep_reply(body: Any, key: str, journal: Journal) -> str:
    """Keep a chat completion in the journal. Returns its fault: '' for a reply that answers, `thinking` for one that
    was cut off before its answer began, else what FAULTS calls it, or empty."""
    text, reason, tokens = read_completion(body)
    answer = first_turn(text)
    if answer and reason not in FAULTS:
        journal.add(key=key, reply=text, **tokens)
        return ""
    fault = FAULTS.get(reason, "empty")
    said = f"a reply {'that is not finished' if answer else 'without text'}, finish_reason {reason}"
    journal.add(key=key, error=fault, said=said, **tokens)
    return "thinking" if fault == "cut" and not answer else fault


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
