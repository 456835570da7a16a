"""Guidance that is learnt: a student is trained towards the probabilities that guidance gives to its commands.

Guidance obeys better and costs a second forward pass; an exported student has none. A student that has learnt it needs
neither (guidance distillation, Meng et al., arXiv 2210.03142). It practises on prompts that it writes under guidance,
so that it is taught at the places where it will be.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from udrl_utils.commands import Command
from udrl_utils.machine import seed_everything
from udrl_utils.settings import TrainingSettings
from udrl_utils.student import Student
from udrl_utils.text import count_words
from udrl_utils.trainer import AlikeLengths, set_dropout, use_plain_attention

if TYPE_CHECKING:
    import torch

PROMPTS = 2  # per request
PASSES = 2  # over these prompts
BATCH_SIZE = 16
LIKELY = 1e-3  # tokens less likely than this share of the likeliest under the command are not learnt: they are noise


@dataclass(frozen=True)
class Practice:
    """Token ids of a prompt, with its end, after its whole command and after the same command without levels; and which
    of its tokens are certain: those of the countdown, once the length is known."""

    commanded: list[int]
    opened: list[int]
    prompt: list[int]
    certain: list[bool]


def practised(settings: TrainingSettings, student: Student, requests: Sequence[tuple[str, Command]]) -> list[Practice]:
    """Prompts that the student writes under guidance, PROMPTS for each (intent, command).

    A length that was asked for is set to that of the prompt, with which its countdown agrees. None where there is
    nothing to learn.
    """
    strength, codec, tokenizer = settings.learnt_guidance, student.codec, student.tokenizer
    if strength == 1 or not codec.levels:
        return []
    intents, commands = [intent for intent, _ in requests], [command for _, command in requests]
    drawn = {"temperature": 1.0, "guidance": strength, "candidates": 1}
    written = student.generate(intents, commands, PROMPTS, settings.seed, **drawn)
    counts = {number for token, number in tokenizer.get_vocab().items() if token.startswith("<|length:")}
    rows: list[Practice] = []
    for intent, command, prompts in zip(intents, commands, written, strict=True):
        for prompt in filter(str.strip, prompts):
            length = command.length and min(max(count_words(prompt), 1), codec.longest)
            asked = Command(command.task, length=length, **command.levels)
            prefixes = student.prefix(intent, asked), student.prefix(intent, Command(command.task, length=length))
            completion = f"{codec.count_down(prompt, settings.horizon)}{tokenizer.eos_token}"
            commanded, opened, ids = tokenizer([*prefixes, completion], add_special_tokens=False).input_ids
            ids = ids[: student.positions - len(commanded)]
            certain = [token in counts and (k > 0 or length is not None) for k, token in enumerate(ids)]
            rows.append(Practice(commanded, opened, ids, certain))
    return rows


def learn_guidance(
    settings: TrainingSettings, student: Student, rows: Sequence[Practice]
) -> tuple[Student, list[float]]:
    """A student trained by cross entropy to the guided probabilities of the one given, and the loss of each step
    [nats a token]. The one given itself, and no loss, where there is nothing to learn."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import get_cosine_schedule_with_warmup

    if not rows:
        return student, []
    seed_everything(settings.seed)
    teacher, model = student.model.eval(), copy.deepcopy(student.model).train()
    use_plain_attention(model)
    set_dropout(model, 0.0)
    lengths = [len(row.commanded) + len(row.prompt) for row in rows]
    order, losses = AlikeLengths(lengths, BATCH_SIZE, settings.seed), []
    steps = PASSES * math.ceil(len(rows) / BATCH_SIZE)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate / 2, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, max(1, steps // 20), steps)
    for number in range(PASSES):
        order.set_epoch(number)
        numbers = list(order)
        for batch in ([rows[k] for k in numbers[i : i + BATCH_SIZE]] for i in range(0, len(rows), BATCH_SIZE)):
            wanted = guided(teacher, batch, settings.learnt_guidance)
            loss = cross_entropy(read(model, [row.commanded for row in batch], batch), wanted)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    return Student(model.eval(), student.tokenizer, student.codec), losses


def guided(teacher: Any, batch: Sequence[Practice], strength: float) -> torch.Tensor:
    """Probabilities that each token of the batch's prompts should have, one after the other: (tokens, vocabulary).

    Those of the teacher under guidance, which changes nothing without levels; the countdown is as it is.
    """
    import torch
    from torch.nn.functional import one_hot

    with torch.inference_mode():
        commanded = read(teacher, [row.commanded for row in batch], batch).log_softmax(-1)
        opened = read(teacher, [row.opened for row in batch], batch).log_softmax(-1)
        unlikely = commanded < commanded.amax(-1, keepdim=True) + math.log(LIKELY)
        wanted = torch.lerp(opened, commanded, strength).masked_fill_(unlikely, -torch.inf).softmax(-1)
        certain = torch.tensor([sure for row in batch for sure in row.certain], device=opened.device)
        tokens = torch.tensor([token for row in batch for token in row.prompt], device=opened.device)
        wanted[certain] = one_hot(tokens[certain], wanted.shape[1]).to(wanted)
    return wanted.clone()


def read(model: Any, prefixes: Sequence[list[int]], batch: Sequence[Practice]) -> torch.Tensor:
    """Logits of each token of the batch's prompts, from its prefix and what precedes it: (tokens, vocabulary)."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    texts = [torch.tensor(prefix + row.prompt) for prefix, row in zip(prefixes, batch, strict=True)]
    ids = pad_sequence(texts, batch_first=True).to(model.device)
    mask = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True).to(model.device)
    places = torch.arange(ids.shape[1])
    begins = torch.tensor([len(prefix) - 1 for prefix in prefixes])[:, None]
    ends = begins + torch.tensor([len(row.prompt) for row in batch])[:, None]
    of_prompt = ((begins <= places) & (places < ends)).to(model.device)
    hidden = model.base_model(ids, attention_mask=mask, use_cache=False)[0]
    return model.get_output_embeddings()(hidden[of_prompt]).float()
