"""The embedded base: exercises that are clean, a base that copies and counts."""

from __future__ import annotations

import pytest
import yaml

from udrl_utils.base import exercises, held_out_words
from udrl_utils.commands import Command, CommandCodec
from udrl_utils.errors import SettingsError
from udrl_utils.evaluation import stems
from udrl_utils.gpt2 import BASE, pretrained_student
from udrl_utils.parameters import resolve
from udrl_utils.settings import ROOT, DistillationSettings
from udrl_utils.student import Student
from udrl_utils.tasks import TASKS, assign_splits, load_intents, words

CODEC = CommandCodec(10, 60, {task: {"relevance": [i / 10 for i in range(11)]} for task in TASKS})


def test_exercises_hold_no_test_intent_and_no_held_out_noun() -> None:
    rows = list(exercises(3000, seed=1))
    assert rows == list(exercises(3000, seed=1)) and {row["task"] for row in rows} == set(TASKS)
    values = yaml.safe_load((ROOT / "notebooks" / "presets" / "laptop.yaml").read_text())
    settings = resolve(DistillationSettings, values)
    splits, held_out = assign_splits(load_intents(settings), settings)
    assert held_out and held_out <= held_out_words()
    test = {intent for intent, split in splits.items() if split == "test"}
    assert test.isdisjoint(row["intent"] for row in rows)
    assert held_out.isdisjoint(word for row in rows for word in words(f"{row['intent']} {row['prompt']}"))


def test_the_base_is_small_and_starts_a_student() -> None:
    assert sum(file.stat().st_size for file in BASE.iterdir()) < 12e6
    model, tokenizer = pretrained_student(BASE, CODEC)
    assert str(model.dtype) == "torch.float32"
    assert len(tokenizer) == model.get_input_embeddings().num_embeddings
    assert set(CODEC.tokens()) <= tokenizer.get_vocab().keys()


@pytest.mark.parametrize("length", [6, 18, 36])
def test_the_base_copies_and_counts(length: int) -> None:
    student = Student(*pretrained_student(BASE, CODEC), CODEC)
    intents = ["glass octopus", "wooden tractor in a museum", "zorvex the blimp", "my late aunt's ukulele"] * 4
    written = student.generate(intents, Command("text_to_image", length=length))
    off = [abs(len(prompt.split()) - length) for (prompt,) in written]
    assert sum(n <= 1 for n in off) / len(off) >= 0.9, off
    nouns = ["octopus", "tractor", "zorvex", "ukulele"] * 4
    hits = [bool(stems(noun) & stems(prompt)) for noun, (prompt,) in zip(nouns, written, strict=True)]
    assert sum(hits) / len(hits) >= 0.75, written


def test_a_base_that_does_not_fit_is_one_line() -> None:
    with pytest.raises(SettingsError, match=r"base='no/where' is neither embedded") as caught:
        pretrained_student("no/where", CODEC)
    assert "\n" not in str(caught.value)
    with pytest.raises(SettingsError, match="n_positions=4096 is more than base='embedded' takes, at most 256"):
        pretrained_student("embedded", CODEC, n_positions=4096)


def test_embeddings_of_the_base_stay_and_those_of_commands_are_trained() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model, tokenizer = pretrained_student(BASE, CODEC)
    weights, command = model.get_input_embeddings().weight, tokenizer.convert_tokens_to_ids("<|relevance:1|>")
    before = weights.detach().clone()
    ids = torch.tensor([[command, *tokenizer(" koi pond")["input_ids"]]])
    loss = model(ids, labels=ids).loss
    whole = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    whole.resize_token_embeddings(len(tokenizer))
    whole.load_state_dict(model.state_dict())
    assert torch.allclose(loss, whole(ids, labels=ids).loss), "what is not trained still counts"
    loss.backward()
    torch.optim.AdamW([weights], lr=0.1, weight_decay=0).step()
    whole(ids, labels=ids).loss.backward()
    trained = slice(tokenizer.convert_tokens_to_ids("<|relevance:0|>"), None)  # the base knows tasks and lengths
    assert torch.allclose(weights.grad[trained], whole.get_input_embeddings().weight.grad[trained], atol=1e-6)
    moved = (weights.detach() != before).any(dim=1)
    assert moved[command] and not moved[: len(tokenizer) - len(CODEC.tokens())].any()
