"""Teachers: whoever writes prompts for intents. One protocol; recorded prompts, a model on this machine, a server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from udrl_utils.settings import DistillationSettings, RunError, SettingsError
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
    """Answers requests with prompts, a list for each request in order, empty where nothing came.

    `name` goes into the pairs. What it pays for, it keeps in the journal, and does not ask for again.
    """

    name: str

    def write(self, requests: Sequence[Request], journal: Journal) -> list[list[str]]: ...


class OpenAITeacher:
    """Any server that speaks the OpenAI chat protocol: vLLM, Ollama, `transformers serve`, hosted ones.

    In the form `list` up to `together` intents of a task share a question; in `single` each prompt has its own.
    """

    def __init__(
        self, client: ChatClient, temperature: float, seed: int, budget: Budget, form: str = "list", together: int = 1
    ):
        self.name, self.client, self.budget, self.form, self.together = client.model, client, budget, form, together
        self.temperature, self.seed = temperature, seed

    def write(self, requests: Sequence[Request], journal: Journal) -> list[list[str]]:
        """Prompts. Raises: RunError when the server refuses to work, when it answers nothing, at a spent budget."""
        if self.form == "single":
            self._answers([question for request in requests for question in self._singles(request)], journal)
            return [read_singles(self.replies(request, journal)) for request in requests]
        groups = grouped(requests, self.together)
        answers = self._answers([self._list(group) for group in groups], journal)
        found: dict[Request, list[str]] = {}
        for group, answer in zip(groups, answers, strict=True):
            pieces = split_reply(answer or "", len(group))
            found.update((r, parse_reply(piece, r.n)) for r, piece in zip(group, pieces, strict=True))
        return [found[request] for request in requests]

    def _answers(self, questions: list[Question], journal: Journal) -> list[str | None]:
        answers = self.client.ask(questions, journal, self.budget)
        if questions and not any(answers):
            faults = {name: n for name, n in journal.usage.items() if name.startswith("failed_")}
            nothing = f"teacher {self.name!r} answered none of {len(questions)} requests ({faults})"
            raise RunError(f"{nothing}; run again later")
        return answers

    def replies(self, request: Request, journal: Journal) -> list[str | None]:
        """Raw replies to the single questions of a request, None where none has come."""
        return [journal.replies.get(question.key(self.name)) for question in self._singles(request)]

    def _singles(self, request: Request) -> list[Question]:
        how = {"temperature": self.temperature, "max_tokens": 120}
        return [Question(single_messages(request, k), {**how, "seed": self.seed + k}) for k in range(request.n)]

    def _list(self, group: list[Request]) -> Question:
        task, n, intents = group[0].task, group[0].n, [request.intent for request in group]
        options = {"temperature": self.temperature, "seed": self.seed, "max_tokens": 120 * n * len(group)}
        return Question(messages(task, intents, n), options, reply_schema(len(group), n))


def grouped(requests: Sequence[Request], most: int) -> list[list[Request]]:
    """Distinct requests in groups of at most so many, each of one task and one number of prompts."""
    kinds: dict[tuple[str, int], list[Request]] = {}
    for request in dict.fromkeys(requests):
        kinds.setdefault((request.task, request.n), []).append(request)
    return [kind[start : start + most] for kind in kinds.values() for start in range(0, len(kind), most)]


def make_teacher(settings: DistillationSettings, budget: Budget) -> Teacher:
    """The teacher that the settings name, with the requests that it may still make.

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
