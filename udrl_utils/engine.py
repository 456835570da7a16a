"""What writes prompts under commands: the interface of every engine, and sampling with guidance."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udrl_utils.commands import Command, CommandCodec, CommandError
from udrl_utils.tasks import clean_intent, harmless

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

# Enough for the longest words: of 4,184 prompts of real LLMs 2 need more in a vocabulary that has not read such text,
# and none in its own. A student that never ends stops there.
TOKENS_PER_WORD = 4


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    min_p: tokens less likely than this share of the likeliest are never drawn: where a word must be copied little
    else is left, where anything may follow nearly everything is (arXiv 2407.01082).
    top_k, top_p: tokens are drawn from the so many likeliest (0: from all), and of those from the ones that together
    have this probability (arXiv 1904.09751).
    guidance: how far the levels of a command are followed, 1 being what was learnt. More obeys better, varies less,
    and costs a second pass (arXiv 2306.17806).
    """

    seed: int = 0
    temperature: float = 1.0
    min_p: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0


@dataclass(frozen=True)
class Batch:
    """Prefixes that are written on together. `opened` holds the prefix without its levels of each row to be guided."""

    prefixes: list[str]
    opened: dict[int, str]
    words: int  # of the longest prompt wanted


class Engine:
    """Writes prompts for intents under commands. A subclass computes tokens, in `_write` and `_stream`."""

    sampling = Sampling()
    knows = tuple(vars(Sampling()))  # of sampling; other values than the neutral ones are refused
    batch_size = 128  # prompts that are written at once
    folder: Path | None = None  # that it was loaded from

    def __init__(self, tokenizer: Tokenizer, codec: CommandCodec, positions: int):
        """`positions`: tokens that the model takes, of prefix and prompt together."""
        self.codec, self.positions, self._tokenizer = codec, positions, tokenizer

    def best_command(self, task: str) -> Command:
        """The command that served a task best on validation intents."""
        return self.codec.best_command(task)

    def prefix(self, intent: str, command: Command) -> str:
        """What the student reads before it writes. An intent that takes more than half of the context is cut, with a
        warning."""
        return self.codec.prefix(self.codec.encode(command), self._fitting(clean_intent(intent)))

    def _fitting(self, intent: str) -> str:
        room = self.positions // 2
        # one token is never more than 16 characters of ordinary text: a bound that spares tokenizing what is cut anyway
        ids = self._tokenizer.encode(harmless(intent[: 16 * room]), add_special_tokens=False).ids
        if len(ids) <= room:
            return intent
        warnings.warn(f"the intent has {len(ids)} tokens or more, of which this student reads {room}", stacklevel=4)
        return self._tokenizer.decode(ids[:room]).strip()

    def generate(
        self,
        intents: Sequence[str],
        command: Command | Sequence[Command],
        n: int = 1,
        seed: int = 0,
        strict: bool = False,
        batch_size: int | None = None,
        **sampling: float,
    ) -> list[list[str]]:
        """n prompts per intent, under one command for all or one command each.

        strict: refuse a command that the train split does not support; else the nearest is asked for, with a warning.
        batch_size: prompts written at once, in place of the engine's own number.
        sampling: temperature and others of `Sampling`, in place of the engine's own.

        Returns a list (one per intent) of lists (n) of str. The same seed and arguments give the same prompts.
        Raises: CommandError when a command asks for what the student does not know, an intent is empty, or the engine
        cannot sample in such a way.
        """
        commands = [command] * len(intents) if isinstance(command, Command) else list(command)
        how = self._sampling(seed, sampling)
        commands = self._checked(intents, commands, strict)
        asked = [self.prefix(i, c) for i, c in zip(intents, commands, strict=True)]
        opened = self._opened(intents, commands, how)
        longest = [self._longest(c) for c in commands]
        # Alike prompts share a batch: it pads and runs as long as its longest.
        order = [k for k in sorted(range(len(asked)), key=lambda k: (longest[k], len(asked[k]))) for _ in range(n)]
        count = -(-len(order) // (batch_size or self.batch_size))  # of batches, all of about one size
        parts = [order[len(order) * k // count : len(order) * (k + 1) // count] for k in range(count)]
        batches = (
            Batch([asked[k] for k in p], {i: opened[k] for i, k in enumerate(p) if k in opened}, longest[p[-1]])
            for p in parts
        )
        written: list[list[str]] = [[] for _ in asked]
        for part, texts in zip(parts, self._write(batches, how), strict=True):
            for k, text in zip(part, texts, strict=True):
                written[k].append(text)
        return written

    def stream(
        self, intent: str, command: Command, seed: int = 0, strict: bool = False, **sampling: float
    ) -> Iterator[str]:
        """Pieces of one prompt as they are written; arguments and errors as of `generate`."""
        how = self._sampling(seed, sampling)
        [command] = self._checked([intent], [command], strict)
        batch = Batch([self.prefix(intent, command)], self._opened([intent], [command], how), self._longest(command))
        return self._stream(batch, how)

    def _sampling(self, seed: int, changes: dict[str, float]) -> Sampling:
        neutral = vars(Sampling())
        for name, value in changes.items():
            if name not in self.knows and value != neutral.get(name):
                raise CommandError(f"{name}={value!r} is beyond this engine, which samples by {', '.join(self.knows)}")
        return Sampling(**{**vars(self.sampling), "seed": seed, **changes})

    def _checked(self, intents: Sequence[str], commands: Sequence[Command], strict: bool) -> list[Command]:
        for intent in intents:
            if not clean_intent(intent):
                raise CommandError(f"intent={intent!r} is empty")
        found = {command: self.codec.feasible(command, strict) for command in dict.fromkeys(commands)}
        for note in filter(None, (note for _, note in found.values())):
            warnings.warn(note, stacklevel=3)
        return [found[command][0] for command in commands]

    def _opened(self, intents: Sequence[str], commands: Sequence[Command], how: Sampling) -> dict[int, str]:
        """Prefixes without levels, by row, for commands that have levels to be guided by."""
        return {
            row: self.prefix(intent, Command(command.task, command.length))
            for row, (intent, command) in enumerate(zip(intents, commands, strict=True))
            if command.levels and how.guidance != 1
        }

    def _longest(self, command: Command) -> int:
        return command.length or self.codec.longest or 60

    def _most(self, prefix_tokens: int, words: int) -> int:
        """Tokens that may be written after a prefix for a prompt of so many words, notes of its length included."""
        return min(self.positions - prefix_tokens, TOKENS_PER_WORD * words + 16)

    def _pieces(self, ids: Iterable[int]) -> Iterator[str]:
        from tokenizers.decoders import DecodeStream

        decoder = DecodeStream(skip_special_tokens=True)
        yield from filter(None, (decoder.step(self._tokenizer, token) for token in ids))

    def _texts(self, ids: Sequence[Sequence[int]]) -> list[str]:
        return [" ".join(text.split()) for text in self._tokenizer.decode_batch(ids, skip_special_tokens=True)]

    def _write(self, batches: Iterable[Batch], how: Sampling) -> Iterator[list[str]]:
        """One prompt for each prefix of each batch."""
        raise NotImplementedError

    def _stream(self, batch: Batch, how: Sampling) -> Iterator[str]:
        """Pieces of the prompt for a batch of one prefix."""
        raise NotImplementedError


class Draw:
    """Draws tokens on a device as `sampling` says, one after the other; each part of the work has a seed of its own."""

    def __init__(self, sampling: Sampling, device: Any, part: int = 0):
        import torch

        seed = random.Random(f"tokens {sampling.seed} {part}").getrandbits(32)
        self.sampling, self.random = sampling, torch.Generator(device).manual_seed(seed)

    def next_tokens(self, logits: torch.Tensor, opened: torch.Tensor, guided: torch.Tensor) -> torch.Tensor:
        """One token per row of `logits`, shape (rows, vocabulary) -> (rows,).

        `opened` holds the logits of the `guided` rows without their levels. Log-probabilities of a guided row move
        away from them, `guidance` times as far as they already are. Then unlikely tokens are left out, and one is
        drawn.
        """
        import torch

        how = self.sampling
        scores = logits.float().log_softmax(-1)
        if len(guided):
            scores[guided] = torch.lerp(opened.float().log_softmax(-1), scores[guided], how.guidance)
        scores = (scores - scores.amax(-1, keepdim=True)) / how.temperature
        unlikely = scores < math.log(max(how.min_p, 1e-30))
        if how.top_k:
            unlikely |= scores < scores.topk(min(how.top_k, scores.shape[-1])).values[:, -1:]
        if how.top_p < 1:
            ordered, places = scores.masked_fill(unlikely, -torch.inf).softmax(-1).sort(-1, descending=True)
            unlikely |= torch.zeros_like(unlikely).scatter(-1, places, ordered.cumsum(-1) - ordered > how.top_p)
        summed = scores.masked_fill_(unlikely, -torch.inf).exp_().cumsum(-1)
        # a number from [0, sum): the first token whose sum is above it, which none of probability 0 is
        drawn = torch.rand(len(summed), 1, generator=self.random, device=summed.device) * summed[:, -1:]
        return (summed > drawn).int().argmax(-1)


def next_logits(model: Any, ids: Any, mask: Any, position: Any, cache: Any) -> torch.Tensor:
    """Logits of what comes after the last of `ids`, shape (rows, vocabulary); keys and values go into the cache."""
    return model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=position,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]


def write(
    model: Any, batch: Any, guided: list[int], draw: Draw, most: int, end: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Tokens that the model writes after each commanded prefix, up to `end` or `most` of them, step by step.

    Yields which rows were written on and a token for each. `batch` is left-padded: the commanded prefixes, then for
    each row in `guided` the same prefix without its levels. An open row is fed what its guided one draws. Rows that
    are done leave the batch, so that the longest prompt is not paid for by all.
    """
    import torch
    from transformers import DynamicCache

    size, device = len(batch.input_ids) - len(guided), batch.input_ids.device
    rows, pairs = torch.arange(size, device=device), torch.tensor(guided, dtype=torch.long, device=device)
    done = torch.zeros(size, dtype=torch.bool, device=device)
    mask, ids, cache = batch.attention_mask, batch.input_ids, DynamicCache(config=model.config)
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    for step in range(most):
        logits = next_logits(model, ids, mask, position, cache)
        drawn = draw.next_tokens(logits[: len(rows)], logits[len(rows) :], pairs)
        done |= drawn == end
        yield rows[~done].tolist(), drawn[~done].tolist()
        if done.all() or step + 1 == most:
            break
        ids, position = torch.cat([drawn, drawn[pairs]])[:, None], position[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        if done.float().mean() >= 0.2:
            going, following = (~done).nonzero()[:, 0], (~done[pairs]).nonzero()[:, 0]
            stay = torch.cat([going, len(rows) + following])
            pairs = torch.searchsorted(going, pairs[following])
            rows, done = rows[going], done[going]
            ids, mask, position = ids[stay], mask[stay], position[stay]
            cache.batch_select_indices(stay)
