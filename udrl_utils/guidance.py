"""Guided writing: prompts drawn token by token, following the levels of a command further than they were learnt."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from udrl_utils.engine import Sampling

if TYPE_CHECKING:
    import torch


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
