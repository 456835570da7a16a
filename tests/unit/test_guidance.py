"""Guided writing, on distributions small enough to check by hand, and against plain generation."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from udrl_utils.commands import Command
from udrl_utils.decoding import Draw, Sampling, write
from udrl_utils.guided import Practice, guided, learn_guidance, practised, read
from udrl_utils.settings import TrainingSettings
from udrl_utils.student import Student, ready_facts


def draw(**changes: float) -> Draw:
    return Draw(Sampling(**changes), "cpu")


def shares(asked: list[float], opened: list[float], draws: int = 20_000, **changes: float) -> list[float]:
    """How often each token is drawn, for one guided row repeated `draws` times."""
    rows = [torch.tensor([values] * draws).log() for values in (asked, opened)]
    drawn = draw(**changes).next_tokens(*rows, torch.arange(draws))
    return (torch.bincount(drawn, minlength=len(asked)) / draws).tolist()


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
    assert shares([0.2, 0.5, 0.3], [0.2, 0.5, 0.3], temperature=0.001) == [0, 1, 0]


def test_rows_that_are_not_guided_stay_as_they_are() -> None:
    asked = torch.tensor([[0.98, 0.01, 0.01], [0.01, 0.495, 0.495]]).log()
    opened, how = torch.tensor([[0.01, 0.01, 0.98]]).log(), draw(guidance=5.0)
    drawn = torch.stack([how.next_tokens(asked, opened, torch.tensor([1])) for _ in range(200)])
    assert (drawn[:, 0] == 0).float().mean() > 0.9, "the first row is its own"
    assert (drawn[:, 1] == 1).all(), "the second is driven away from its open row"


@pytest.fixture(scope="module")
def model():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    made = GPT2LMHeadModel(
        GPT2Config(vocab_size=24, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    ).eval()
    for weight in (made.transformer.wte.weight, made.transformer.wpe.weight, made.transformer.h[1].mlp.c_proj.weight):
        weight.data *= 12  # peaked enough that the likeliest token is no matter of rounding
    made.transformer.wpe.weight.data *= 8  # and another one at every position
    return made


def batch_of(prefixes: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, left-padded."""
    longest = max(map(len, prefixes))
    pad = [[0] * (longest - len(p)) for p in prefixes]
    ids = torch.tensor([a + p for a, p in zip(pad, prefixes, strict=True)])
    mask = torch.tensor([[0] * len(a) + [1] * len(p) for a, p in zip(pad, prefixes, strict=True)])
    return ids, mask


def written(model, prefixes: list[list[int]], guided: list[int], **how: float) -> list[list[int]]:
    """What is written after each commanded prefix, of which there are as many as prefixes less guided ones."""
    found: list[list[int]] = [[] for _ in range(len(prefixes) - len(guided))]
    for rows, tokens in write(model, *batch_of(prefixes), guided, draw(**how), 30, ends=[0]):
        for row, token in zip(rows, tokens, strict=True):
            found[row].append(token)
    return found


def test_rows_that_leave_the_batch_do_not_change_the_others(model) -> None:
    prefixes = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10], [11, 12], [3, 3, 3]]
    with torch.inference_mode():
        together = written(model, prefixes, [], min_p=1.0)
        for prefix, tokens in zip(prefixes, together, strict=True):
            alone = model.generate(torch.tensor([prefix]), do_sample=False, max_new_tokens=30, eos_token_id=0)
            assert tokens == [t for t in alone[0, len(prefix) :].tolist() if t != 0]
    assert len({len(tokens) for tokens in together}) > 1, "prompts of several lengths, or nothing left early"


def test_guided_rows_keep_their_open_rows_when_others_leave(model) -> None:
    asked, opened = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10]], [[2, 3], [6], [8, 9, 10]]
    guided = [0, 2, 3]
    how = {"min_p": 1.0, "guidance": 1.7}
    with torch.inference_mode():
        together = written(model, asked + opened, guided, **how)
        for row, prefix in zip(guided, opened, strict=True):
            alone = written(model, [asked[row], prefix], [0], **how)
            assert together[row] == alone[0]


@pytest.mark.parametrize("guidance", [0.5, 1.7, 4.0])
def test_guided_writing_is_that_of_transformers(model, guidance: float) -> None:
    asked, opened = [[1, 2, 3], [5, 6], [7, 8, 9, 10]], [[2, 3], [6], [8, 9, 10]]
    with torch.inference_mode():
        ours = written(model, asked + opened, [0, 1, 2], min_p=1.0, guidance=guidance)
        for prefix, without, tokens in zip(asked, opened, ours, strict=True):
            theirs = model.generate(
                torch.tensor([prefix]),
                negative_prompt_ids=torch.tensor([without]),
                guidance_scale=guidance,
                do_sample=False,
                max_new_tokens=30,
                eos_token_id=0,
            )
            assert tokens == [t for t in theirs[0, len(prefix) :].tolist() if t != 0]
        plain = written(model, asked, [], min_p=1.0)
    assert ours != plain, "guidance changes what is written"


def apart(student: Student, rows: list[Practice], wanted: torch.Tensor) -> float:
    """Cross entropy of wanted probabilities under a student [nats a token]."""
    with torch.inference_mode():
        return cross_entropy(read(student.model, [row.commanded for row in rows], rows), wanted).item()


def test_guidance_is_learnt_and_what_has_no_levels_stays() -> None:
    novice, task = Student.load("ready"), "text_to_image"
    settings = TrainingSettings(run="any", learnt_guidance=3.0, learning_rate=1e-3)
    asked = [Command(task, length=8, relevance=level) for level in (0.05, 0.95, None)]
    rows = practised(settings, novice, [(i, c) for i in ready_facts()["intents"][task][:6] for c in asked])
    student, losses = learn_guidance(settings, novice, rows * 16)
    assert len(losses) == 2 * len(rows) and student.model is not novice.model
    levels, opened = ([row for row in rows if (row.commanded == row.opened) == own] for own in (False, True))
    wanted, kept = guided(novice.model, levels, 3.0), guided(novice.model, opened, 3.0)
    entropy = -torch.xlogy(wanted, wanted).sum(-1).mean().item()
    before, after = (apart(each, levels, wanted) - entropy for each in (novice, student))
    assert 0 <= after < 0.75 * before
    assert apart(student, opened, kept) < apart(novice, opened, kept) + 0.1


def test_no_guidance_is_learnt_where_none_is_asked_for() -> None:
    novice = Student.load("ready")
    settings = TrainingSettings(run="any", learnt_guidance=1.0)
    requests = [("koi pond", Command("text_to_image", length=8, relevance=0.9))]
    assert learn_guidance(settings, novice, practised(settings, novice, requests)) == (novice, [])
