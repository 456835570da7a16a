"""Guided sampling, on distributions small enough to check by hand."""

from __future__ import annotations

import pytest
import torch

from udrl_utils.guidance import GuidedSampler


def shares(asked: list[float], opened: list[float], draws: int = 20_000, **changes: float) -> list[float]:
    """How often each token is drawn, for one guided row repeated `draws` times."""
    settings = {"temperature": 1.0, "min_p": 0.0, "guidance": 1.0} | changes
    sampler = GuidedSampler(draws, list(range(draws)), torch.Generator().manual_seed(0), **settings)
    scores = torch.tensor([asked] * draws + [opened] * draws).log()
    drawn = sampler(torch.empty(0), scores).argmax(-1)
    assert torch.equal(drawn[:draws], drawn[draws:]), "an open row must follow its guided one"
    return (torch.bincount(drawn[:draws], minlength=len(asked)) / draws).tolist()


def test_without_guidance_the_distribution_is_the_students_own() -> None:
    assert shares([0.5, 0.3, 0.2], [0.1, 0.1, 0.8]) == pytest.approx([0.5, 0.3, 0.2], abs=0.015)


def test_guidance_squares_the_odds_that_the_levels_add() -> None:
    # 0.6 : 0.4 where the open student says even: the levels' odds of 3 : 2 become 9 : 4
    assert shares([0.6, 0.4], [0.5, 0.5], guidance=2.0) == pytest.approx([9 / 13, 4 / 13], abs=0.015)


def test_no_guidance_at_all_is_the_open_student() -> None:
    assert shares([0.9, 0.1], [0.3, 0.7], guidance=0.0) == pytest.approx([0.3, 0.7], abs=0.015)


def test_unlikely_tokens_are_never_drawn() -> None:
    assert shares([0.60, 0.39, 0.01], [0.60, 0.39, 0.01], min_p=0.02)[2] == 0
    assert shares([0.60, 0.38, 0.02], [0.60, 0.38, 0.02], min_p=0.02)[2] > 0


def test_temperature_sharpens() -> None:
    assert shares([0.6, 0.4], [0.6, 0.4], temperature=0.5) == pytest.approx([9 / 13, 4 / 13], abs=0.015)


def test_rows_that_are_not_guided_stay_as_they_are() -> None:
    sampler = GuidedSampler(2, [1], torch.Generator().manual_seed(0), 1.0, 0.0, 5.0)
    scores = torch.tensor([[0.98, 0.01, 0.01], [0.01, 0.495, 0.495], [0.01, 0.01, 0.98]]).log()
    drawn = torch.stack([sampler(torch.empty(0), scores).argmax(-1) for _ in range(200)])
    assert (drawn[:, 0] == 0).float().mean() > 0.9, "the first row is its own"
    assert (drawn[:, 1] == 1).all(), "the second is driven away from its open row, which follows"
    assert torch.equal(drawn[:, 1], drawn[:, 2])
