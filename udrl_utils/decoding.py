"""Tokens one after another: how they are sampled, with guidance, and how a batch of prefixes is continued.

In go a causal language model and token ids, out come token ids. Commands, intents and texts are not known here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Sampling:
    """How tokens are sampled.

    min_p: tokens whose probability is below this share of the most probable token's are never sampled
    (arXiv 2407.01082).
    guidance: how strongly the levels of a command are followed; 1 is the distribution that was learnt. Higher values
    obey better, vary less, and cost a second forward pass (classifier-free guidance, arXiv 2306.17806).
    candidates: prompts that are drawn for each one that is kept, under a command that asks for something. The student
    reads them, and keeps the one that it takes to be nearest to its command.
    """

    seed: int = 0
    temperature: float = 1.0
    min_p: float = 0.0
    guidance: float = 1.0
    candidates: int = 1


class Draw:
    """Samples tokens on a device, step after step. Each part of the work has a random generator of its own."""

    def __init__(self, sampling: Sampling, device: Any, part: int = 0):
        import torch

        seed = random.Random(f"tokens {sampling.seed} {part}").getrandbits(32)
        self.sampling, self.random = sampling, torch.Generator(device).manual_seed(seed)

    def next_tokens(self, logits: torch.Tensor, opened: torch.Tensor, guided: torch.Tensor) -> torch.Tensor:
        """One token per row of `logits`, shape (rows, vocabulary) -> (rows,).

        `opened` holds the logits of the `guided` rows without their levels, shape (guided rows, vocabulary). A guided
        row is scored by opened + guidance * (commanded - opened), in log-probabilities. Tokens below min_p are then
        left out, and one token is sampled.
        """
        import torch

        how = self.sampling
        scores = logits.float().log_softmax(-1)
        if len(guided):
            scores[guided] = torch.lerp(opened.float().log_softmax(-1), scores[guided], how.guidance)
        if not how.temperature:  # the likeliest
            return scores.argmax(-1)
        scores = (scores - scores.amax(-1, keepdim=True)) / how.temperature
        summed = scores.masked_fill_(scores < math.log(max(how.min_p, 1e-30)), -torch.inf).exp_().cumsum(-1)
        # a number from [0, sum): the first token whose sum is above it, which is never one of probability 0
        drawn = torch.rand(len(summed), 1, generator=self.random, device=summed.device) * summed[:, -1:]
        return (summed > drawn).int().argmax(-1)


def next_logits(model: Any, ids: Any, mask: Any, position: Any, cache: Any) -> torch.Tensor:
    """Logits of the token after the last of `ids`, shape (rows, vocabulary); the cache is extended in place."""
    return model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=position,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]


def write(
    model: Any, ids: Any, mask: Any, guided: list[int], draw: Draw, most: int, ends: list[int], cache: Any = None
) -> Iterator[tuple[list[int], list[int]]]:
    """Continue each commanded prefix by at most `most` tokens, up to one of the tokens `ends`, step by step.

    `ids` is left-padded: first the commanded prefixes, then, for each row in `guided`, the same prefix without its
    levels, which is continued with the tokens sampled for the guided row. Finished rows leave the batch, so that its
    cost follows the prompts and not the longest of them. `cache` holds what the model has read of them already; the
    mask has that, too.
    Yields the rows that are still going and one token for each of them.
    """
    import torch
    from transformers import DynamicCache

    size, device, cache = len(ids) - len(guided), ids.device, cache or DynamicCache(config=model.config)
    rows, pairs = torch.arange(size, device=device), torch.tensor(guided, dtype=torch.long, device=device)
    done, last = torch.zeros(size, dtype=torch.bool, device=device), torch.tensor(ends, device=device)
    position = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    for step in range(most):
        logits = next_logits(model, ids, mask, position, cache)
        drawn = draw.next_tokens(logits[: len(rows)], logits[len(rows) :], pairs)
        done |= torch.isin(drawn, last)
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
