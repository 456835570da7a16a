"""Teachers: whoever writes prompts for intents. One protocol, three backends."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from udrl_utils.grammar import GrammarTeacher
from udrl_utils.machine import device_and_dtype
from udrl_utils.settings import DistillationSettings, SettingsError
from udrl_utils.tasks import messages


@dataclass(frozen=True)
class Request:
    """n prompts of a task for an intent."""

    task: str
    intent: str
    n: int


class Teacher(Protocol):
    """Answers requests with raw replies, one per request, in order; `name` goes into the pairs."""

    name: str

    def write(self, requests: list[Request]) -> list[str]: ...


class OpenAITeacher:
    """Any server that speaks the OpenAI chat protocol: vLLM, Ollama, `transformers serve`, hosted ones.

    The key comes from OPENAI_API_KEY and nowhere else. The client retries failed requests by itself.
    """

    concurrency = 16

    def __init__(self, model: str, base_url: str, temperature: float, seed: int):
        self.name, self.base_url, self.temperature, self.seed = model, base_url or None, temperature, seed

    @cached_property
    def client(self) -> Any:
        from openai import OpenAI

        return OpenAI(base_url=self.base_url, api_key=os.environ.get("OPENAI_API_KEY", "none"), max_retries=6)

    def _ask(self, request: Request) -> str:
        chat = messages(request.task, request.intent, request.n)
        reply = self.client.chat.completions.create(
            model=self.name, messages=chat, temperature=self.temperature, seed=self.seed, max_tokens=120 * request.n
        )
        return reply.choices[0].message.content or ""

    def write(self, requests: list[Request]) -> list[str]:
        """Raw replies, asked for side by side."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            return list(pool.map(self._ask, requests))


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

    def write(self, requests: list[Request]) -> list[str]:
        """Raw replies; the same seed and requests give the same ones on the same machine."""
        from transformers import set_seed

        set_seed(self.seed)
        sampling = {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
        longest = 120 * max(request.n for request in requests)
        texts = [self._chat_text(request) for request in requests]
        replies = self.pipeline(
            texts, max_new_tokens=longest, batch_size=self.batch_size, return_full_text=False, **sampling
        )
        return [reply[0]["generated_text"] for reply in replies]


def make_teacher(settings: DistillationSettings) -> Teacher:
    """The teacher that the settings name. Raises: SettingsError for an LLM teacher without a model."""
    if settings.teacher == "grammar":
        return GrammarTeacher(settings.seed, settings.grammar_drift, settings.grammar_repetition)
    if not settings.teacher_model:
        raise SettingsError(f"parameter teacher_model='' must name a model with teacher={settings.teacher!r}")
    if settings.teacher == "openai":
        base_url, temperature = settings.teacher_base_url, settings.teacher_temperature
        return OpenAITeacher(settings.teacher_model, base_url, temperature, settings.seed)
    return TransformersTeacher(settings.teacher_model, settings.teacher_temperature, settings.seed)
