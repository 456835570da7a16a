"""The embedded bases: exercises that are clean, bases that copy and count, one that obeys."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer
from typer.testing import CliRunner

from udrl_utils.base import CURRICULA, Curriculum, exercises, held_out_words
from udrl_utils.cli import PRESETS, app
from udrl_utils.commands import Command, CommandCodec
from udrl_utils.encoder import Encoder
from udrl_utils.errors import SettingsError
from udrl_utils.evaluation import stems
from udrl_utils.gpt2 import BASES, pretrained_student, widen
from udrl_utils.parameters import resolve
from udrl_utils.samples import Sampler
from udrl_utils.settings import DistillationSettings
from udrl_utils.student import Student
from udrl_utils.tasks import TASKS, assign_splits, load_intents, words

CODEC = CommandCodec(10, 60, {task: {"relevance": [i / 10 for i in range(11)]} for task in TASKS})


@pytest.mark.parametrize("curriculum", CURRICULA.values(), ids=CURRICULA)
def test_exercises_hold_no_test_intent_and_no_held_out_noun(curriculum: Curriculum) -> None:
    rows = exercises(3000, 1, curriculum)
    assert rows == exercises(3000, 1, curriculum) and {row["task"] for row in rows} == set(TASKS)
    values = yaml.safe_load((PRESETS / "laptop.yaml").read_text())
    settings = resolve(DistillationSettings, values)
    splits, held_out = assign_splits(load_intents(settings), settings)
    assert held_out and held_out <= held_out_words()
    test = {intent for intent, split in splits.items() if split == "test"}
    assert test.isdisjoint(row["intent"] for row in rows)
    assert held_out.isdisjoint(word for row in rows for word in words(f"{row['intent']} {row['prompt']}"))


def test_a_base_is_trained_by_one_command(tmp_path: Path) -> None:
    small = {"n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": 600}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(yaml.safe_load((PRESETS / "laptop.yaml").read_text()) | small))
    asked = ["base", "commanded", "--rows", "400", "--preset", str(tmp_path / "small.yaml"), "--out", str(tmp_path)]
    assert CliRunner().invoke(app, asked).exit_code == 0
    model, tokenizer = pretrained_student(tmp_path, CODEC)
    assert model.config.n_embd == 32 and "<|relevance:9|>" in AutoTokenizer.from_pretrained(tmp_path).get_vocab()
    assert len(tokenizer) == 600 and not (tmp_path / "checkpoints").exists()


def test_the_bases_are_small_and_start_a_student() -> None:
    assert sum(file.stat().st_size for base in BASES.values() for file in base.iterdir()) < 12e6
    for base in BASES:
        model, tokenizer = pretrained_student(base, CODEC)
        assert str(model.dtype) == "torch.float32"
        assert len(tokenizer) == model.get_input_embeddings().num_embeddings
        assert set(CODEC.tokens()) <= tokenizer.get_vocab().keys()


def test_one_base_obeys_levels_before_it_saw_a_run_and_the_other_does_not() -> None:
    intents = ["glass octopus", "wooden tractor in a museum", "harvest festival poster", "my late aunt's ukulele"] * 3
    found = {}
    for base in BASES:
        student = Student(*pretrained_student(base, CODEC), CODEC)
        sampler = Sampler(student, ["relevance"], Encoder("minilm"), seed=0, guidance=3.0)
        asked = [
            (intent, Command("related_search", relevance=CODEC.level_of(i))) for i in range(10) for intent in intents
        ]
        written = sampler.sample(asked, 1)
        found[base] = written.asked_relevance.corr(written.relevance, method="spearman")
    assert found["commanded"] > 0.7 > 0.3 > found["copying"], found


@pytest.mark.parametrize(("bins", "same"), [(4, {0: 1, 2: 6, 3: 8}), (30, {0: 0, 15: 5, 29: 9})])
def test_levels_of_another_number_begin_as_those_of_the_same_quantile(bins: int, same: dict[int, int]) -> None:
    other = CommandCodec(bins, 60, {task: {"relevance": [i / bins for i in range(bins + 1)]} for task in TASKS})
    (model, tokenizer), (base, known) = pretrained_student("commanded", other), pretrained_student("commanded", CODEC)
    for asked, level in same.items():
        ours = model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(f"<|relevance:{asked}|>")]
        theirs = base.get_input_embeddings().weight[known.convert_tokens_to_ids(f"<|relevance:{level}|>")]
        assert (ours == theirs).all(), (asked, level)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("length", [6, 18, 36])
def test_the_bases_copy_and_count(base: str, length: int) -> None:
    student = Student(*pretrained_student(base, CODEC), CODEC)
    intents = ["glass octopus", "wooden tractor in a museum", "zorvex the blimp", "my late aunt's ukulele"] * 4
    # the commanded one has seen prompts that stray, and must be told not to; it has coined fewer words as well
    told, kept = ({"relevance": 0.95}, 0.5) if base == "commanded" else ({}, 0.75)
    written = student.generate(intents, Command("text_to_image", length=length, **told))
    off = [abs(len(prompt.split()) - length) for (prompt,) in written]
    assert sum(n <= 1 for n in off) / len(off) >= 0.9, off
    nouns = ["octopus", "tractor", "zorvex", "ukulele"] * 4
    hits = [bool(stems(noun) & stems(prompt)) for noun, (prompt,) in zip(nouns, written, strict=True)]
    assert sum(hits) / len(hits) >= kept, written


def test_a_base_that_does_not_fit_is_one_line() -> None:
    with pytest.raises(SettingsError, match=r"base='no/where' is neither commanded, copying, a Hub id") as caught:
        pretrained_student("no/where", CODEC)
    assert "\n" not in str(caught.value)


def test_a_model_that_cannot_take_more_tokens_is_one_line() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, max_position_embeddings=128, **shape))
    widen(model, 128)
    with pytest.raises(SettingsError, match="this model takes at most 128 tokens, and 192 are needed") as caught:
        widen(model, 192)
    assert "\n" not in str(caught.value)


def test_embeddings_of_the_base_stay_and_those_of_commands_are_trained() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model, tokenizer = pretrained_student("copying", CODEC)
    weights, command = model.get_input_embeddings().weight, tokenizer.convert_tokens_to_ids("<|relevance:1|>")
    before = weights.detach().clone()
    ids = torch.tensor([[command, *tokenizer(" koi pond")["input_ids"]]])
    loss = model(ids, labels=ids).loss
    whole = AutoModelForCausalLM.from_pretrained(BASES["copying"], dtype=torch.float32)
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
