"""Guided sampling: how the next token of a commanded prompt is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass
class GuidedSampler:
    """Draws each row's next token; a logits processor for `generate(do_sample=False)`, which then takes what was drawn.

    A batch is `size` commanded rows, then one open row for each of the `guided` ones: the same prefix without its
    levels. Log-probabilities of a guided row move away from those of its open row, `guidance` times as far as they
    already are (classifier-free guidance, arXiv 2306.17806). Then tokens less likely than `min_p` of the likeliest
    are left out (arXiv 2407.01082), and one is drawn. An open row follows its guided one.
    """

    size: int
    guided: list[int]
    draw: torch.Generator
    temperature: float
    min_p: float
    guidance: float

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores, shape (rows, vocabulary), with everything but the drawn tokens at minus infinity."""
        import math

        import torch

        logits = scores.float().log_softmax(-1)
        asked, opened = logits[: self.size], logits[self.size :]
        asked[self.guided] = torch.lerp(opened, asked[self.guided], self.guidance)
        asked = asked / self.temperature
        unlikely = asked < asked.amax(-1, keepdim=True) + math.log(max(self.min_p, 1e-30))
        # dividing by exponential noise and taking the largest draws from the distribution, without normalising it
        noise = torch.empty_like(asked).exponential_(generator=self.draw)
        drawn = (asked.masked_fill(unlikely, -torch.inf) - noise.log()).argmax(-1)
        drawn = torch.cat([drawn, drawn[self.guided]])
        return torch.full_like(scores, -torch.inf).scatter_(-1, drawn[:, None], 0.0)
