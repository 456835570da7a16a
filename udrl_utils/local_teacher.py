"""A teacher on this machine: a local or Hub instruct model, in this process or, with several GPUs, in one on each."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cached_property
from typing import TYPE_CHECKING, Any

from udrl_utils.dialogue import Request, messages
from udrl_utils.journal import Journal, key_of
from udrl_utils.machine import device_and_dtype, devices
from udrl_utils.workers import pool

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue

BATCH_SIZE = 16

Reply = tuple[str, int]  # and its number of tokens


class TransformersTeacher:
    """A local or Hub instruct model, in left-padded batches; where there are several GPUs, each takes whole batches."""

    def __init__(self, model: str, temperature: float, seed: int):
        self.name, self.temperature, self.seed = model, temperature, seed

    def write(self, requests: list[Request], journal: Journal) -> list[str]:
        """Raw replies; the same seed and batch give the same ones on the same machine, after a restart too."""
        keys = [key_of(self.name, self.temperature, self.seed, vars(request)) for request in requests]
        slices = [slice(start, start + BATCH_SIZE) for start in range(0, len(requests), BATCH_SIZE)]
        missing = [batch for batch in slices if not all(key in journal.replies for key in keys[batch])]
        asked = [(keys[batch][0], requests[batch]) for batch in missing]
        for number, replies in self._written(asked):
            for key, (reply, tokens) in zip(keys[missing[number]], replies, strict=True):
                journal.add_reply(key, reply, tokens_out=tokens)
        return [journal.replies[key] for key in keys]

    def _written(self, batches: list[tuple[str, list[Request]]]) -> Iterator[tuple[int, list[Reply]]]:
        """Replies to each batch after its number, as they are done."""
        if len(devices()) == 1 or len(batches) < 2:
            for number, batch in enumerate(batches):
                yield number, self.writer(*batch)
        else:
            asked = {self._processes.submit(write_batch, *batch): number for number, batch in enumerate(batches)}
            for done in as_completed(asked):
                yield asked[done], done.result()

    @cached_property
    def writer(self) -> Writer:
        """The model in this process."""
        return Writer(self.name, self.temperature, devices()[0])

    @cached_property
    def _processes(self) -> ProcessPoolExecutor:
        """A process per GPU, each with the model loaded once."""
        places, free = devices(), multiprocessing.get_context("spawn").SimpleQueue()
        for place in places:
            free.put(place)
        return pool(len(places), start_process, self.name, self.temperature, free)


class Writer:
    """A model on one device, which answers batches of requests."""

    def __init__(self, model: str, temperature: float, device: str):
        from transformers import pipeline

        _, dtype, reason = device_and_dtype()
        print(f"teacher {model} on {device} in {dtype}: {reason}", flush=True)
        self.pipeline = pipeline("text-generation", model=model, device=device, dtype=dtype)
        self.tokenizer = self.pipeline.tokenizer
        self.tokenizer.padding_side = "left"
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}

    def __call__(self, key: str, requests: Sequence[Request]) -> list[Reply]:
        """A raw reply to each request; the key seeds the batch."""
        from transformers import set_seed

        set_seed(int(key[:8], 16))
        replies = self.pipeline(
            [self._chat_text(request) for request in requests],
            max_new_tokens=120 * max(request.n for request in requests),
            batch_size=BATCH_SIZE,
            return_full_text=False,
            **self.sampling,
        )
        texts = [reply[0]["generated_text"] for reply in replies]
        return [(text, len(self.tokenizer(text)["input_ids"])) for text in texts]

    def _chat_text(self, request: Request) -> str:
        chat = messages(request.task, [request.intent], request.n)
        if self.tokenizer.chat_template:
            return self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return "\n\n".join(turn["content"] for turn in chat) + "\n\n"


_writer: Any = None  # of a process that start_process has started


def start_process(model: str, temperature: float, free: SimpleQueue) -> None:
    """Load the model in this process, on a device that no other one has taken."""
    global _writer
    _writer = Writer(model, temperature, free.get())


def write_batch(key: str, requests: Sequence[Request]) -> list[Reply]:
    """What this process's model answers."""
    return _writer(key, requests)
