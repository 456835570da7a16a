"""Teachers write prompts for intents: recorded prompts, a model on this machine, or a server. One protocol for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from udrl_utils.errors import SettingsError
from udrl_utils.settings import DistillationSettings
from udrl_utils.teachers.local import LocalTeacher
from udrl_utils.teachers.recorded import RecordedTeacher
from udrl_utils.teachers.replies import (
    Journal,
    Request,
    messages,
    parse_reply,
    read_singles,
    reply_schema,
    single_messages,
    split_reply,
)
from udrl_utils.teachers.server import Budget, ChatClient, Question


class Teacher(Protocol):
    """Writes the prompts of each request, in the order of the requests; an empty list where nothing came.

    `name` goes into the pairs. Replies that were paid for are kept in the journal and not asked for again.
    """

    name: str

    def write(self, requests: Sequence[Request], journal: Journal) -> list[list[str]]: ...


class OpenAITeacher:
    """Any server that speaks the OpenAI chat protocol: vLLM, Ollama, `transformers serve`, hosted ones.

    In the form `list` up to `together` intents of a task share a request; in `single` each prompt has its own.
    """

    def __init__(
        self, client: ChatClient, temperature: float, seed: int, budget: Budget, form: str = "list", together: int = 1
    ):
        self.name, self.client, self.budget, self.form, self.together = client.model, client, budget, form, together
        self.temperature, self.seed = temperature, seed

    def write(self, requests: Sequence[Request], journal: Journal) -> list[list[str]]:
        """Prompts. Raises: RunError when the server refuses to work or answers nothing, or when the budget is spent."""
        if self.form == "single":
            self.client.ask([q for request in requests for q in self._singles(request)], journal, self.budget)
            return [read_singles(self.replies(request, journal)) for request in requests]
        groups = grouped(requests, self.together)
        answers = self.client.ask([self._list(group) for group in groups], journal, self.budget)
        found: dict[Request, list[str]] = {}
        for group, answer in zip(groups, answers, strict=True):
            pieces = split_reply(answer or "", len(group))
            found.update((r, parse_reply(piece, r.n)) for r, piece in zip(group, pieces, strict=True))
        return [found[request] for request in requests]

    def replies(self, request: Request, journal: Journal) -> list[str | None]:
        """Raw replies to the single questions of a request, '' where one answers nothing, None where none has come."""
        return [journal.reply_to(question.key(self.name)) for question in self._singles(request)]

    def _singles(self, request: Request) -> list[Question]:
        how = {"temperature": self.temperature, "max_tokens": 120}
        return [Question(single_messages(request, k), {**how, "seed": self.seed + k}) for k in range(request.n)]

    def _list(self, group: list[Request]) -> Question:
        task, n, intents = group[0].task, group[0].n, [request.intent for request in group]
        options = {"temperature": self.temperature, "seed": self.seed, "max_tokens": 120 * n * len(group)}
        return Question(messages(task, intents, n), options, reply_schema(len(group), n))


def grouped(requests: Sequence[Request], most: int) -> list[list[Request]]:
    """Distinct requests in groups of at most `most`, each of one task and one number of prompts."""
    kinds: dict[tuple[str, int], list[Request]] = {}
    for request in dict.fromkeys(requests):
        kinds.setdefault((request.task, request.n), []).append(request)
    return [kind[start : start + most] for kind in kinds.values() for start in range(0, len(kind), most)]


def make_teacher(settings: DistillationSettings, budget: Budget) -> Teacher:
    """The teacher that the settings name; one that is paid for stops when its budget is spent.

    Raises: SettingsError for an LLM teacher without a model.
    """
    if settings.teacher == "recorded":
        return RecordedTeacher()
    if not settings.teacher_model:
        raise SettingsError(f"parameter teacher_model='' must name a model with teacher={settings.teacher!r}")
    how = settings.teacher_temperature, settings.seed
    if settings.teacher == "local":
        return LocalTeacher(settings.teacher_model, *how, settings.teacher_form)
    client = ChatClient(
        settings.teacher_model, settings.teacher_base_urls, settings.teacher_concurrency, settings.teacher_timeout
    )
    return OpenAITeacher(client, *how, budget, settings.teacher_form, settings.teacher_intents_per_request)
