"""A teacher on this machine: an instruct model, from a folder, a GGUF file or the Hub, that writes in large batches.

Requests become chats, and chats become replies, which the journal keeps. The common beginning of a batch's chats is
computed once, completions of one chat share it whole, and finished rows leave the batch. Replies are read elsewhere.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from udrl_utils.decoding import Draw, Sampling, next_logits, write
from udrl_utils.errors import SettingsError
from udrl_utils.language_models import load_causal_lm, located
from udrl_utils.machine import device_and_dtype, side_by_side
from udrl_utils.teachers.replies import (
    Chat,
    Journal,
    Request,
    key_of,
    messages,
    parse_reply,
    read_singles,
    single_messages,
    without_system,
)

MIN_P = 0.05  # tokens less likely than this share of the likeliest are never drawn; they derail small models
BATCH_ROWS = {"cpu": 256, "cuda": 2048, "mps": 64}  # completions written at once
LONGEST_PROMPT = 90  # tokens of a single prompt; a longer one is given up


class LocalTeacher:
    """A local or Hub instruct model, or a GGUF file. Replies are kept in the journal as soon as a batch ends."""

    def __init__(self, model: str, temperature: float, seed: int, form: str, template: dict[str, Any] | None = None):
        self.model, self.name = model, located(model).name if located(model).exists() else model
        self.temperature, self.seed, self.form, self.template = temperature, seed, form, template or {}

    def write(self, requests: Sequence[Request], journal: Journal) -> list[list[str]]:
        """Prompts of each request; the same seed gives the same ones on the same machine, after a restart too."""
        asked = {key: chat for request in requests for key, chat in self.asked(request).items()}
        if not asked.keys() <= journal.replies.keys():
            self._complete(asked, journal, 120 * max(r.n for r in requests) if self.form == "list" else LONGEST_PROMPT)
        replies = [self.replies(request, journal) for request in requests]
        if self.form == "single":
            return [read_singles(some) for some in replies]
        return [parse_reply(some[0] or "", request.n) for request, some in zip(requests, replies, strict=True)]

    def _complete(self, asked: dict[str, Chat], journal: Journal, longest: int) -> None:
        """Write the replies that the journal lacks. Batches never depend on it and are written whole, and so a run
        that was cut off gets the same replies."""
        batches = [b for b in self.writer.batches(asked, longest) if not b.keys() <= journal.replies.keys()]
        started, done, missing, lock = time.monotonic(), 0, sum(map(len, batches)), threading.Lock()

        def write(batch: dict[str, list[int]]) -> None:
            nonlocal done
            replies = self.writer(batch, longest)
            with lock:  # kept at once: a later batch may end first
                for key, (reply, tokens) in zip(batch, replies, strict=True):
                    journal.add(key=key, reply=reply, tokens_out=tokens)
                done += len(batch)
                rate = done / (time.monotonic() - started)
                left = f"{rate:.2f}/s, {(missing - done) / rate / 60:.0f} min left in this shard"
                print(f"teacher: {done} of {missing} replies, {left}", flush=True)

        for _ in side_by_side(write, batches):
            pass

    def asked(self, request: Request) -> dict[str, Chat]:
        """Chats of a request by the keys of their replies."""
        chats = (
            [single_messages(request, number) for number in range(request.n)]
            if self.form == "single"
            else [messages(request.task, [request.intent], request.n)]
        )
        how = [self.template] if self.template else []
        return {key_of(self.name, self.temperature, self.seed, k, chat, *how): chat for k, chat in enumerate(chats)}

    def replies(self, request: Request, journal: Journal) -> list[str | None]:
        """Raw replies to a request, None where none has come."""
        return [journal.replies.get(key) for key in self.asked(request)]

    @cached_property
    def writer(self) -> Writer:
        """The model, loaded."""
        return Writer(self.model, self.temperature, self.template)


class Writer:
    """An instruct model that continues batches of chats. `template` holds arguments of its chat template.

    Raises: SettingsError for a model without a chat template.
    """

    def __init__(self, model: str, temperature: float, template: dict[str, Any] | None = None):
        self.name, self.template = model, {"enable_thinking": False} | (template or {})
        self.device, dtype, reason = device_and_dtype()
        print(f"teacher {Path(model).name} on {self.device} in {dtype}: {reason}", flush=True)
        self.model, self.tokenizer = load_causal_lm(model)
        if not self.tokenizer.chat_template:
            raise SettingsError(f"model {model!r} has no chat template: it is a base model and no instruct one")
        self.model, self.temperature = self.model.to(self.device, dtype), temperature
        ends = self.model.generation_config.eos_token_id or self.tokenizer.eos_token_id
        self.ends = sorted({self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])})

    def text(self, chat: Chat) -> str:
        """A chat as the model reads it, up to its reply; models that can be told not to think are told so."""
        how, said = {"tokenize": False, "add_generation_prompt": True, **self.template}, ""
        for form in (list, without_system):
            try:
                return self.tokenizer.apply_chat_template(form(chat), **how)
            except Exception as error:  # templates raise errors of their own for roles that they do not know
                said = str(error)[:200]
        raise SettingsError(f"the chat template of {self.name!r} refuses a chat: {said}")

    def batches(self, chats: dict[str, Chat], longest: int) -> list[dict[str, list[int]]]:
        """Token ids by key, in batches of chats that share their system text and their examples."""
        distinct = {str(chat): chat for chat in chats.values()}
        texts = [self.text(chat) for chat in distinct.values()]
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]  # templates write BOS themselves
        ids = dict(zip(distinct, ids, strict=True))
        alike: dict[str, dict[str, list[int]]] = {}
        for key, chat in chats.items():
            alike.setdefault(str(chat[:-1]), {})[key] = ids[str(chat)]
        most = BATCH_ROWS[self.device] if longest <= LONGEST_PROMPT else 16
        parts = []
        for group in alike.values():
            keys = sorted(group, key=lambda key: group[key])  # completions of one chat are neighbours
            parts += [{key: group[key] for key in keys[k : k + most]} for k in range(0, len(keys), most)]
        return parts

    def __call__(self, batch: dict[str, list[int]], longest: int) -> list[tuple[str, int]]:
        """A reply to each row of a batch, '' where it does not end, and its tokens; the first key seeds it."""
        import torch

        sampling = Sampling(int(next(iter(batch))[:8], 16), self.temperature, MIN_P)
        written: list[list[int]] = [[] for _ in batch]
        with torch.inference_mode():
            for rows, tokens in self._written(list(batch.values()), longest, Draw(sampling, self.device)):
                for row, token in zip(rows, tokens, strict=True):
                    written[row].append(token)
        texts = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [
            (text if len(ids) < longest else "", len(ids) + 1) for text, ids in zip(texts, written, strict=True)
        ]  # those that go on to the last step did not end

    def _written(self, rows: list[list[int]], longest: int, draw: Draw) -> Iterator[tuple[list[int], list[int]]]:
        """Rows that have not ended and a token for each of them, step by step; the likeliest at temperature 0."""
        import torch
        from transformers import DynamicCache

        distinct = sorted(set(map(tuple, rows)))
        columns = zip(*(ids[:-1] for ids in distinct), strict=False)  # the last token of a chat is its own
        shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
        cache = DynamicCache(config=self.model.config)
        tensor = lambda values: torch.tensor(values, device=self.device)  # noqa: E731
        if shared:
            next_logits(self.model, tensor([distinct[0][:shared]]), None, None, cache)
            cache.batch_select_indices(tensor([0] * len(distinct)))
        tails = [ids[shared:] for ids in distinct]
        width = max(map(len, tails))
        ids = tensor([[self.tokenizer.eos_token_id] * (width - len(tail)) + list(tail) for tail in tails])
        mask = tensor([[1] * shared + [0] * (width - len(tail)) + [1] * len(tail) for tail in tails])
        if width > 1:
            position = (mask.cumsum(-1) - 1).clamp(min=0)[:, shared:-1]
            next_logits(self.model, ids[:, :-1], mask[:, :-1], position, cache)
        place = {chat: k for k, chat in enumerate(distinct)}
        each = tensor([place[tuple(row)] for row in rows])  # completions of one chat go on from its end
        cache.batch_select_indices(each)
        return write(self.model, ids[each, -1:], mask[each], [], draw, longest, self.ends, cache)
