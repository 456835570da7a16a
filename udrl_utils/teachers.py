"""Teachers: whoever writes prompts for intents. One protocol, three backends."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from udrl_utils.chat import Budget, ChatClient, Question
from udrl_utils.errors import RunError, SettingsError
from udrl_utils.grammar import GrammarTeacher
from udrl_utils.journal import Journal, key_of
from udrl_utils.machine import device_and_dtype
from udrl_utils.settings import DistillationSettings
from udrl_utils.tasks import messages


@dataclass(frozen=True)
class Request:
    """n prompts of a task for an intent."""

    task: str
    intent: str
    n: int


class Teacher(Protocol):
    """Answers requests with raw replies, one per request, in order, '' where none came; `name` goes into the pairs.

    What it pays for, it keeps in the journal, and does not ask for again.
    """

    name: str

    def write(self, requests: list[Request], journal: Journal) -> list[str]: ...


class OpenAITeacher:
    """Any server that speaks the OpenAI chat protocol: vLLM, Ollama, `transformers serve`, hosted ones."""

    def __init__(self, client: ChatClient, temperature: float, seed: int, budget: Budget):
        self.name, self.client, self.budget = client.model, client, budget
        self.options = {"temperature": temperature, "seed": seed}

    def write(self, requests: list[Request], journal: Journal) -> list[str]:
        """Raw replies. Raises: RunError when the server refuses to work, when it answers nothing, at a spent budget."""
        replies = self.client.ask([self._question(request) for request in requests], journal, self.budget)
        if requests and not any(replies):
            faults = {name: n for name, n in journal.usage.items() if name.startswith("failed_")}
            raise RunError(
                f"teacher {self.name!r} answered none of {len(requests)} requests ({faults}); run again later"
            )
        return [reply or "" for reply in replies]

    def _question(self, request: Request) -> Question:
        chat = messages(request.task, request.intent, request.n)
        return Question(chat, {**self.options, "max_tokens": 120 * request.n}, reply_schema(request.n))


def reply_schema(n: int) -> dict[str, Any]:
    """JSON schema of a reply with n prompts, for servers that can be told one."""
    prompts = {"type": "array", "items": {"type": "string"}, "minItems": n, "maxItems": n}
    return {
        "type": "object",
        "properties": {"prompts": prompts},
        "required": ["prompts"],
        "additionalProperties": False,
    }


class TransformersTeacher:
    """A local or Hub instruct model in this process, in left-padded batches."""

    batch_size = 16

    def __init__(self, model: str, temperature: float, seed: int):
        self.name, self.temperature, self.seed = model, temperature, seed

    @cached_property
    def pipeline(self) -> Any:
        from transformers import pipeline

        device, dtype, reason = device_and_dtype()
        print(f"teacher {self.name} on {device} in {dtype}: {reason}", flush=True)
        writer = pipeline("text-generation", model=self.name, device=device, dtype=dtype)
        writer.tokenizer.padding_side = "left"
        writer.tokenizer.pad_token = writer.tokenizer.pad_token or writer.tokenizer.eos_token
        return writer

    def _chat_text(self, request: Request) -> str:
        chat, tokenizer = messages(request.task, request.intent, request.n), self.pipeline.tokenizer
        if tokenizer.chat_template:
            return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return "\n\n".join(turn["content"] for turn in chat) + "\n\n"

    def write(self, requests: list[Request], journal: Journal) -> list[str]:
        """Raw replies; the same seed and batch give the same ones on the same machine, after a restart too."""
        keys = [key_of(self.name, self.temperature, self.seed, vars(request)) for request in requests]
        for start in range(0, len(requests), self.batch_size):
            batch = slice(start, start + self.batch_size)
            if not all(key in journal.replies for key in keys[batch]):
                for key, (reply, tokens) in zip(keys[batch], self._batch(keys[start], requests[batch]), strict=True):
                    journal.add_reply(key, reply, tokens_out=tokens)
        return [journal.replies[key] for key in keys]

    def _batch(self, key: str, requests: list[Request]) -> list[tuple[str, int]]:
        from transformers import set_seed

        set_seed(int(key[:8], 16))
        sampling = {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
        replies = self.pipeline(
            [self._chat_text(request) for request in requests],
            max_new_tokens=120 * max(request.n for request in requests),
            batch_size=self.batch_size,
            return_full_text=False,
            **sampling,
        )
        texts = [reply[0]["generated_text"] for reply in replies]
        return [(text, len(self.pipeline.tokenizer(text)["input_ids"])) for text in texts]


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
        return OpenAITeacher(client, settings.teacher_temperature, settings.seed, budget)
    return TransformersTeacher(settings.teacher_model, settings.teacher_temperature, settings.seed)
