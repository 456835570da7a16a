"""A client of servers that speak the OpenAI chat protocol: many questions side by side, patient with faults, counted.

vLLM, Ollama, `transformers serve` and hosted services speak it. Teachers and judges both ask through here.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from udrl_utils.settings import RunError
from udrl_utils.teachers.replies import Journal, key_of

if TYPE_CHECKING:
    from tenacity import RetryCallState

ATTEMPTS = 8
BEGUN = 4  # times `concurrency`: questions that are begun and unanswered at once, those that wait to be asked again too
LONGEST_REPLY = 200_000  # characters; what comes beyond is not a reply but a fault
LONGEST_BODY = 2_000_000  # bytes; a server that announces more is not listened to
LONGEST_WAIT = 120.0  # seconds; what a server may ask for with Retry-After


@dataclass(frozen=True)
class Question:
    """A chat to be continued, and how: messages, sampling options, the JSON schema that the reply should have."""

    messages: list[dict[str, str]]
    options: dict[str, Any] = field(default_factory=dict)
    schema: dict[str, Any] | None = None

    def key(self, model: str) -> str:
        """The same model, messages and options have the same key."""
        return key_of(model, self.messages, self.options)


class BadReply(Exception):
    """The server answered, but not with a chat completion."""


class Budget:
    """Requests that may still be made; None for any number."""

    def __init__(self, requests: int | None):
        self.left = requests

    def spend(self) -> None:
        """Raises: RunError when nothing is left."""
        if self.left is not None:
            if self.left <= 0:
                raise RunError("the request budget is spent; all replies so far are kept: raise it and run again")
            self.left -= 1


class ChatClient:
    """Asks a model on one server or on several in turn.

    At most `concurrency` requests are under way; one that waits before its next try does not count as such.
    The key comes from OPENAI_API_KEY and nowhere else.
    """

    def __init__(self, model: str, base_urls: Sequence[str], concurrency: int, timeout: float):
        self.model, self.base_urls = model, list(base_urls) or [None]
        self.concurrency, self.timeout = concurrency, timeout
        self._without_schema: set[str] = set()  # addresses that refused a schema

    def ask(self, questions: Sequence[Question], journal: Journal, budget: Budget) -> list[str | None]:
        """Replies in the order of the questions, None where none came; what the journal holds is not asked again.

        Raises: RunError when the servers refuse the key or the model, or when the budget is spent.
        """
        from anyio.from_thread import start_blocking_portal

        keys = [question.key(self.model) for question in questions]
        new = {key: q for key, q in zip(keys, questions, strict=True) if key not in journal.replies}
        if new:
            with start_blocking_portal() as portal:  # a notebook's own event loop is already running
                portal.call(self._ask_all, new, journal, budget)
        return [journal.replies.get(key) for key in keys]

    async def _ask_all(self, questions: dict[str, Question], journal: Journal, budget: Budget) -> None:
        import anyio
        from openai import AsyncOpenAI, DefaultAioHttpClient

        secret, gate, refusals = os.environ.get("OPENAI_API_KEY", "none"), anyio.Semaphore(self.concurrency), []
        how, hooks = {"api_key": secret, "max_retries": 0, "timeout": self.timeout}, {"response": [refuse_huge]}
        servers = [
            AsyncOpenAI(base_url=url, http_client=DefaultAioHttpClient(event_hooks=hooks), **how)
            for url in self.base_urls
        ]
        turns = itertools.cycle(servers)
        # what failed comes again after a few others, and not after all: the last to be answered would be asked alone
        begun = anyio.Semaphore(BEGUN * self.concurrency)

        async def once(key: str, question: Question) -> None:
            async with gate:
                if refusals:  # what is under way may still come back; nothing new is asked
                    return
                try:
                    budget.spend()
                    await self._once(key, question, next(turns), journal)
                except RunError as error:
                    refusals.append(error)

        async def answered(key: str, question: Question) -> None:
            async with begun:
                await patiently(once, key, question)

        async with anyio.create_task_group() as group:
            for key, question in questions.items():
                group.start_soon(answered, key, question)
        for server in servers:
            await server.close()
        if refusals:
            raise refusals[0]

    async def _once(self, key: str, question: Question, server: Any, journal: Journal) -> None:
        import openai

        address = str(server.base_url)
        shaped = question.schema is not None and address not in self._without_schema
        try:
            text, usage = await self._post(question, server, shaped)
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise RunError(
                f"{address} answers {error.status_code} to model {self.model!r}: "
                "check the model's name, the address and the environment variable OPENAI_API_KEY"
            ) from None
        except (openai.OpenAIError, BadReply, ValueError) as error:
            journal.add_failure(key, name_of(error))
            if getattr(error, "status_code", 500) in (400, 413, 422):
                if not shaped:
                    return
                self._without_schema.add(address)
                raise TryAgain(0.0) from None
            raise TryAgain(asked_pause(error)) from None
        journal.add_reply(key, text, *usage)

    async def _post(self, question: Question, server: Any, shaped: bool) -> tuple[str, tuple[int, int]]:
        from openai.types.chat import ChatCompletion

        body = {"model": self.model, "messages": question.messages, **question.options}
        if shaped:
            form = {"name": "reply", "strict": True, "schema": question.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        # not chat.completions.create, which walks through every message and so costs more than the sending
        reply = await server.post("/chat/completions", cast_to=ChatCompletion, body=body)
        try:
            text, usage = (reply.choices[0].message.content or "")[:LONGEST_REPLY], reply.usage
            return text, (int(usage.prompt_tokens), int(usage.completion_tokens)) if usage else (0, 0)
        except (AttributeError, IndexError, TypeError, ValueError):
            raise BadReply from None


async def patiently(once: Callable[..., Awaitable[None]], key: str, question: Question) -> None:
    """Ask until a reply comes, and give up after ATTEMPTS."""
    from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

    tries = AsyncRetrying(
        stop=stop_after_attempt(ATTEMPTS),
        wait=pause,
        retry=retry_if_exception_type(TryAgain),
        retry_error_callback=lambda state: None,
    )
    await tries(once, key, question)


async def refuse_huge(response: Any) -> None:
    """Raises: BadReply for a response that announces more than LONGEST_BODY, before it is read."""
    if int(response.headers.get("content-length", 0)) > LONGEST_BODY:
        raise BadReply


class TryAgain(Exception):
    """A fault that passes; `pause` is how long the server asked to wait [s]."""

    def __init__(self, pause: float):
        super().__init__(pause)
        self.pause = pause


def pause(state: RetryCallState) -> float:
    """Seconds until the next try: exponential with jitter, and never less than the server asked for."""
    from tenacity import wait_random_exponential

    asked = state.outcome.exception().pause
    return max(asked, wait_random_exponential(multiplier=0.25, max=30)(state))


def asked_pause(error: Exception) -> float:
    """What a reply's Retry-After header asks for [s]; 0 without one, or with one that is no number."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    try:
        return min(max(0.0, float(headers.get("retry-after", 0))), LONGEST_WAIT)
    except ValueError:
        return 0.0


def name_of(error: Exception) -> str:
    """A word for a fault: its status code, or timeout, connection or bad_reply."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return str(error.status_code)
    # what the transport calls a ConnectTimeout is also a server that hangs up
    if isinstance(error, openai.APITimeoutError) and type(error.__cause__).__name__ != "ConnectTimeout":
        return "timeout"
    return "connection" if isinstance(error, openai.APIConnectionError) else "bad_reply"
