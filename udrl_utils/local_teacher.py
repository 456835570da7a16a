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

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue

BATCH_SIZE = 16

# The first key of a batch, which also seeds it, and its requests.
Batch = tuple[str, list[Request]]
Reply = tuple[str, int]


class TransformersTeacher:
    """A local or Hub instruct model, in left-padded batches; whole batches go to `devices`, side by side."""

    def __init__(self, model: str, temperature: float, seed: int, devices: Sequence[str] = ()):
        self.name, self.temperature, self.seed, self._devices = model, temperature, seed, devices

    def write(self, requests: list[Request], journal: Journal) -> list[str]:
        """Raw replies; the same seed and batch give the same ones on the same machine, after a restart too."""
        keys = [key_of(self.name, self.temperature, self.seed, vars(request)) for request in requests]
        batches = {}
        for start in range(0, len(requests), BATCH_SIZE):
            batch = slice(start, start + BATCH_SIZE)
            if not all(key in journal.replies for key in keys[batch]):
                batches[keys[start]] = keys[batch], requests[batch]
        for first, replies in self._written([(first, asked) for first, (_, asked) in batches.items()]):
            for key, (reply, tokens) in zip(batches[first][0], replies, strict=True):
                journal.add_reply(key, reply, tokens_out=tokens)
        return [journal.replies[key] for key in keys]

    def _written(self, batches: list[Batch]) -> Iterator[tuple[str, list[Reply]]]:
        """Replies to each batch after its key, as they are done."""
        places = list(self._devices or devices())
        if len(places) == 1 or len(batches) < 2:
            for key, requests in batches:
                yield key, self.writer(key, requests)
            return
        context = multiprocessing.get_context("spawn")
        free = context.SimpleQueue()
        for place in places:
            free.put(place)
        with ProcessPoolExecutor(len(places), context, start_process, (self.name, self.temperature, free)) as pool:
            asked = {pool.submit(write_batch, key, requests): key for key, requests in batches}
            for done in as_completed(asked):
                yield asked[done], done.result()

    @cached_property
    def writer(self) -> Writer:
        """The model in this process."""
        return Writer(self.name, self.temperature, next(iter(self._devices), None))


class Writer:
    """A model on one device, which answers batches of requests."""

    def __init__(self, model: str, temperature: float, device: str | None = None):
        from transformers import pipeline

        usual, dtype, reason = device_and_dtype()
        print(f"teacher {model} on {device or usual} in {dtype}: {reason}", flush=True)
        self.pipeline = pipeline("text-generation", model=model, device=device or usual, dtype=dtype)
        self.tokenizer = self.pipeline.tokenizer
        self.tokenizer.padding_side = "left"
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}

    def __call__(self, key: str, requests: Sequence[Request]) -> list[Reply]:
        """A raw reply to each request with its number of tokens; the key seeds the batch."""
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
