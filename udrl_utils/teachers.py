"""Teachers: whoever writes prompts for intents. One protocol, three backends."""

from __future__ import annotations

from typing import Protocol

from udrl_utils.chat import Budget, ChatClient, Question
from udrl_utils.dialogue import Request, messages, reply_schema, split_reply
from udrl_utils.errors import RunError, SettingsError
from udrl_utils.grammar import GrammarTeacher
from udrl_utils.journal import Journal
from udrl_utils.local_teacher import TransformersTeacher
from udrl_utils.settings import DistillationSettings


class Teacher(Protocol):
    """Answers requests with raw replies, one per request, in order, '' where none came; `name` goes into the pairs.

    What it pays for, it keeps in the journal, and does not ask for again.
    """

    name: str

    def write(self, requests: list[Request], journal: Journal) -> list[str]: ...


class OpenAITeacher:
    """Any server that speaks the OpenAI chat protocol: vLLM, Ollama, `transformers serve`, hosted ones.

    Up to `together` intents of a task share a question.
    """

    def __init__(self, client: ChatClient, temperature: float, seed: int, budget: Budget, together: int = 1):
        self.name, self.client, self.budget, self.together = client.model, client, budget, together
        self.options = {"temperature": temperature, "seed": seed}

    def write(self, requests: list[Request], journal: Journal) -> list[str]:
        """Raw replies. Raises: RunError when the server refuses to work, when it answers nothing, at a spent budget."""
        groups = grouped(requests, self.together)
        answers = self.client.ask([self._question(group) for group in groups], journal, self.budget)
        if groups and not any(answers):
            faults = {name: n for name, n in journal.usage.items() if name.startswith("failed_")}
            raise RunError(f"teacher {self.name!r} answered none of {len(groups)} requests ({faults}); run again later")
        replies: dict[Request, str] = {}
        for group, answer in zip(groups, answers, strict=True):
            replies.update(zip(group, split_reply(answer or "", len(group)), strict=True))
        return [replies[request] for request in requests]

    def _question(self, group: list[Request]) -> Question:
        task, n, intents = group[0].task, group[0].n, [request.intent for request in group]
        options = {**self.options, "max_tokens": 120 * n * len(group)}
        return Question(messages(task, intents, n), options, reply_schema(len(group), n))


def grouped(requests: list[Request], most: int) -> list[list[Request]]:
    """Distinct requests in groups of at most so many, each of one task and one number of prompts."""
    kinds: dict[tuple[str, int], list[Request]] = {}
    for request in dict.fromkeys(requests):
        kinds.setdefault((request.task, request.n), []).append(request)
    return [kind[start : start + most] for kind in kinds.values() for start in range(0, len(kind), most)]


def make_teacher(settings: DistillationSettings, budget: Budget) -> Teacher:
    """The teacher that the settings name, with the requests that it may still make.

    Raises: SettingsError for an LLM teacher without a model.
    """
    if settings.teacher == "grammar":
        return GrammarTeacher(settings.seed, settings.grammar_drift, settings.grammar_repetition)
    if not settings.teacher_model:
        raise SettingsError(f"parameter teacher_model='' must name a model with teacher={settings.teacher!r}")
    if settings.teacher == "openai":
        client = ChatClient(
            settings.teacher_model, settings.teacher_base_urls, settings.teacher_concurrency, settings.teacher_timeout
        )
        together = settings.teacher_intents_per_request
        return OpenAITeacher(client, settings.teacher_temperature, settings.seed, budget, together)
    return TransformersTeacher(settings.teacher_model, settings.teacher_temperature, settings.seed)
