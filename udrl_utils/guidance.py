"""Guided writing: prompts drawn token by token, following the levels of a command further than they were learnt."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass
class Sampling:
    """How tokens are drawn: by temperature, min_p (arXiv 2407.01082) and guidance (arXiv 2306.17806)."""

    draw: torch.Generator
    temperature: float
    min_p: float
    guidance: float

    def next_tokens(self, logits: torch.Tensor, opened: torch.Tensor, guided: torch.Tensor) -> torch.Tensor:
        """One token per row of `logits`, shape (rows, vocabulary) -> (rows,).

        `opened` holds the logits of the `guided` rows without their levels. Log-probabilities of a guided row move
        away from them, `guidance` times as far as they already are. Then tokens less likely than `min_p` of the
        likeliest are left out, and one is drawn.
        """
        import torch

        scores = logits.float().log_softmax(-1)
        if len(guided):
            scores[guided] = torch.lerp(opened.float().log_softmax(-1), scores[guided], self.guidance)
        scores /= self.temperature
        unlikely = scores < scores.amax(-1, keepdim=True) + math.log(max(self.min_p, 1e-30))
        # dividing by exponential noise and taking the largest draws from the distribution, without normalising it
        noise = torch.empty_like(scores).exponential_(generator=self.draw)
        return (scores.masked_fill_(unlikely, -torch.inf) - noise.log_()).argmax(-1)


def write(model: Any, batch: Any, guided: list[int], sampling: Sampling, most: int, end: int) -> list[list[int]]:
    """Tokens that the model writes after each commanded prefix, up to `end` or `most` of them.

    `batch` is left-padded: the commanded prefixes, then for each row in `guided` the same prefix without its levels.
    An open row is fed what its guided one draws. Rows that are done leave the batch, so that the longest prompt is
    not paid for by all.
    """
    import torch
    from transformers import DynamicCache

    size, device = len(batch.input_ids) - len(guided), batch.input_ids.device
    written: list[list[int]] = [[] for _ in range(size)]
    rows, pairs = torch.arange(size, device=device), torch.tensor(guided, dtype=torch.long, device=device)
    done = torch.zeros(size, dtype=torch.bool, device=device)
    mask, ids, cache = batch.attention_mask, batch.input_ids, DynamicCache(config=model.config)
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    for step in range(most):
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        drawn = sampling.next_tokens(logits[: len(rows)], logits[len(rows) :], pairs)
        done |= drawn == end
        for row, token, over in zip(rows.tolist(), drawn.tolist(), done.tolist(), strict=True):
            if not over:
                written[row].append(token)
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
    return written
