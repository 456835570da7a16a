"""Teachers write prompts for intents: recorded prompts, a model on this machine, or a server. One protocol for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from udrl_utils.errors import RunError, SettingsError
from udrl_utils.settings import AnnotationSettings, DistillationSettings
from udrl_utils.teachers.batch import BatchClient
from udrl_utils.teachers.local import LocalTeacher
from udrl_utils.teachers.recorded import RecordedTeacher, recorded_name, recorded_sets
from udrl_utils.teachers.replies import (
    Chat,
    Journal,
    Request,
    messages,
    parse_reply,
    read_singles,
    reply_schema,
    single_messages,
    split_reply,
)
from udrl_utils.teachers.server import Budget, ChatClient, Question, TooLong, options_of


class Teacher(Protocol):
    """Writes the prompts of each request, in the order of the requests; an empty list where nothing came.

    `name` goes into the pairs. Replies that were paid for are kept in the journal and not asked for again.
    """

    name: str

    def write(self, requests: Sequence[Request], journal: Journal) -> list[list[str]]: ...


@dataclass
class OpenAITeacher:
    """Any server that speaks the OpenAI chat protocol: vLLM, Ollama, `transformers serve`, hosted ones.

    In the form `list` up to `together` intents of a task share a request; in `single` each prompt has its own.
    `request` holds further fields of each request.
    """

    client: ChatClient
    temperature: float
    seed: int
    form: str = "list"
    together: int = 1
    request: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name = self.client.model

    def write(self, requests: Sequence[Request], journal: Journal) -> list[list[str]]:
        """Prompts. Raises: RunError when the server refuses to work or answers nothing, or when the budget is spent."""
        if self.form == "single":
            self.client.ask([q for request in requests for q in self._singles(request)], journal)
            return [read_singles(self.replies(request, journal)) for request in requests]
        kinds: dict[tuple[str, int], list[Request]] = {}  # a task and a number of prompts
        for request in dict.fromkeys(requests):
            kinds.setdefault((request.task, request.n), []).append(request)
        groups = [kind[k : k + self.together] for kind in kinds.values() for k in range(0, len(kind), self.together)]
        try:
            answers = self.client.ask([self._list(group) for group in groups], journal)
        except TooLong as error:
            if self.together == 1:
                raise RunError(f"{error}; lower prompts_per_intent, or serve the model with a longer context") from None
            self.together //= 2
            print(f"{self.name}: {self.together} intents share a request now; {error}", flush=True)
            return self.write(requests, journal)
        found: dict[Request, list[str]] = {}
        for group, answer in zip(groups, answers, strict=True):
            pieces = split_reply(answer or "", len(group))
            found.update((r, parse_reply(piece, r.n)) for r, piece in zip(group, pieces, strict=True))
        return [found[request] for request in requests]

    def replies(self, request: Request, journal: Journal) -> list[str | None]:
        """Raw replies to the single questions of a request, '' where one answers nothing, None where none has come."""
        return [journal.reply_to(question.key(self.name)) for question in self._singles(request)]

    def _singles(self, request: Request) -> list[Question]:
        return [self._question(single_messages(request, k), self.seed + k, 120) for k in range(request.n)]

    def _list(self, group: list[Request]) -> Question:
        task, n, count = group[0].task, group[0].n, len(group)
        chat = messages(task, [request.intent for request in group], n)
        return self._question(chat, self.seed, 120 * n * count, reply_schema(count, n))

    def _question(self, chat: Chat, seed: int, tokens: int, schema: dict[str, Any] | None = None) -> Question:
        how = {"temperature": self.temperature, "seed": seed, "max_tokens": tokens}
        return Question(chat, options_of(how, self.request), schema)


def make_teacher(settings: DistillationSettings, budget: Budget = None) -> Teacher:
    """The teacher that the settings name; a served one stops when its budget of requests is spent.

    Raises: SettingsError for an LLM teacher without a model.
    """
    if settings.teacher == "recorded":
        return RecordedTeacher(recorded_name(), recorded_sets())
    if not settings.teacher_model:
        raise SettingsError(f"parameter teacher_model='' must name a model with teacher={settings.teacher!r}")
    how, request = (settings.teacher_temperature, settings.seed, settings.teacher_form), settings.teacher_request
    if settings.teacher == "local":
        return LocalTeacher(settings.teacher_model, *how, request.get("chat_template_kwargs"))
    client = client_of(settings, "teacher", budget)
    return OpenAITeacher(client, *how, settings.teacher_intents_per_request, request)


def client_of(settings: DistillationSettings | AnnotationSettings, who: str, budget: Budget) -> ChatClient:
    """The client of the servers that the settings name for the `teacher` or the `judge`."""
    model, urls, concurrency, timeout, batch = (
        getattr(settings, f"{who}_{name}") for name in ("model", "base_urls", "concurrency", "timeout", "batch")
    )
    return (BatchClient if batch else ChatClient)(model, urls, concurrency, timeout, budget, who)
