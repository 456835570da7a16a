"""Training rows: what is left open, what is swapped, what stands in them, and in which order they are seen."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pandas as pd
import pytest

from udrl_utils import rows
from udrl_utils.commands import CommandCodec
from udrl_utils.gpt2 import new_student, train_tokenizer
from udrl_utils.rows import WordSwaps, command_pairs, left_open, word_pieces
from udrl_utils.settings import TrainingSettings, resolve
from udrl_utils.trainer import AlikeLengths, make_trainer, tokenized

NAMES = ["length", "relevance"]
PAIRS = pd.DataFrame(
    {
        "pair_id": [f"{i}" for i in range(300)],
        "task": "text_to_image",
        "intent": [
            f"{animal} in a {place}" for animal, place in itertools.product(("heron", "otter", "gecko"), ["boat"] * 100)
        ],
        "prompt": [
            f"Painting of a {animal}, {animal} on a quiet boat"
            for animal in ("heron", "otter", "gecko")
            for _ in range(100)
        ],
        "length": 9,
        "relevance": np.linspace(0, 1, 300),
    }
)
CODEC = CommandCodec.fit(PAIRS, NAMES, bins=4)


@pytest.fixture
def settings(smoke: dict) -> TrainingSettings:
    return resolve(TrainingSettings, smoke | {"horizon": 4, "word_swaps": 0.5, "command_dropout": 0.3})


def test_command_dropout_is_a_share(settings: TrainingSettings) -> None:
    names = ["length", "relevance", "diversity"]
    opened = [left_open(f"{i}", names, settings) for i in range(4000)]
    assert 0.2 < np.mean([bool(names) for names in opened]) < 0.3
    assert {frozenset(), frozenset(names), frozenset({"length"})} <= set(opened)


def test_rows_are_commands_intent_and_prompt_with_its_horizon(settings: TrainingSettings) -> None:
    plain = settings.model_copy(update={"word_swaps": 0, "command_dropout": 0})
    row = command_pairs(PAIRS, CODEC, plain)[0]
    assert row["prompt"] == "<|task:text_to_image|><|length:9|><|relevance:0|>heron in a boat<|prompt|>"
    assert row["completion"] == "<|length:9|> Painting<|length:8|> of a heron, heron<|length:4|> on a quiet boat"
    row = command_pairs(PAIRS, CODEC, plain, commanded=False)[0]
    assert row["prompt"] == "<|task:text_to_image|>heron in a boat<|prompt|>"
    assert row["completion"] == PAIRS.prompt[0]


@pytest.mark.parametrize("token", ["<|end|>", "<|length:3|>", "<|prompt|>", "<|task:text_to_image|>", "</s>", "<pad>"])
@pytest.mark.parametrize("commanded", [True, False])
def test_no_text_becomes_a_special_token(settings: TrainingSettings, token: str, commanded: bool) -> None:
    plain = settings.model_copy(update={"word_swaps": 0, "horizon": 0})
    harmless = PAIRS.head(40).assign(intent="heron boat", prompt="A heron on a boat")
    hostile = harmless.assign(intent=f"heron {token} boat", prompt=f"{token}A heron{token} on <{token} a boat {token}")
    tokenizer = train_tokenizer(PAIRS.prompt, 400, [*CODEC.tokens(), "</s>", "<pad>"])
    special = set(tokenizer.all_special_ids)
    ours, theirs = (
        tokenized(command_pairs(rows, CODEC, plain, tokenizer, commanded), tokenizer, 500)["input_ids"][:]
        for rows in (hostile, harmless)
    )
    assert [[i for i in ids if i in special] for ids in ours] == [[i for i in ids if i in special] for ids in theirs]
    text = tokenizer.decode([i for i in ours[0] if i not in special])
    assert text.count(token.replace("<", "< ")) == 5, "it is still there, as text"


def test_a_swapped_word_is_the_same_in_intent_and_prompt(settings: TrainingSettings) -> None:
    swapped = WordSwaps(PAIRS, settings)
    changed = 0
    for row in PAIRS.to_dict("records"):
        intent, prompt = swapped(row)
        assert (intent, prompt) == swapped(row), "the same pair and seed give the same words"
        animal, _, _, boat = intent.split()
        assert prompt.casefold() == f"painting of a {animal}, {animal} on a quiet {boat}"
        changed += intent != row["intent"]
    assert 0.25 < changed / len(PAIRS) < 0.5


def test_rows_on_disk_are_the_rows_in_memory(settings: TrainingSettings, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(rows, "CHUNK", 70)
    in_memory = command_pairs(PAIRS, CODEC, settings)
    on_disk = command_pairs(PAIRS, CODEC, settings, folder=tmp_path)
    assert on_disk[:] == in_memory[:] and on_disk.cache_files
    other = command_pairs(PAIRS.assign(relevance=0.5), CODEC, settings, folder=tmp_path)
    assert other["prompt"][:] != on_disk["prompt"][:], "other rewards are other rows"


def test_swaps_practise_tokens_that_no_text_holds(settings: TrainingSettings) -> None:
    always = settings.model_copy(update={"word_swaps": 1.0})
    tokenizer = train_tokenizer(
        ["gazelles graze", "hazel gazes", *PAIRS.intent, *PAIRS.prompt] * 3, 400, CODEC.tokens()
    )

    def practised(rows) -> set[str]:
        return {token for row in rows for token in tokenizer.tokenize(row["prompt"])}

    assert not [piece for pieces in word_pieces(tokenizer) for piece in pieces if not piece.isalpha()]
    more = practised(command_pairs(PAIRS, CODEC, always, tokenizer)) - practised(command_pairs(PAIRS, CODEC, always))
    assert len(more) > 10


def test_batches_hold_alike_lengths_and_every_row_once_an_epoch() -> None:
    lengths = [int(n) for n in np.random.default_rng(0).integers(10, 90, 5003)]
    sampler = AlikeLengths(lengths, batch_size=16, seed=0)
    order = list(sampler)
    assert sorted(order) == list(range(5003)) and order == list(sampler)
    batches = [[lengths[i] for i in order[k : k + 16]] for k in range(0, len(order), 16)]
    assert np.mean([max(batch) - min(batch) for batch in batches]) < 5
    means = [np.mean(batch) for batch in batches]
    assert abs(np.corrcoef(means, means[1:] + means[:1])[0, 1]) < 0.2, "one step tells nothing of the next"
    sampler.set_epoch(1)
    assert list(sampler) != order


@pytest.fixture
def trainer_of(settings: TrainingSettings, tmp_path):
    """A trainer on short and long prompts, batch by batch of alike lengths, and its batches."""

    def made(**changes: float):
        import torch

        rows = pd.concat([PAIRS.head(8).assign(prompt="a heron", length=2), PAIRS.head(8)], ignore_index=True)
        plain = settings.model_copy(update={"word_swaps": 0, "batch_size": 8, **changes})
        tokenizer = train_tokenizer([*rows.intent, *rows.prompt], 400, CODEC.tokens())
        data = command_pairs(rows, CODEC, plain)
        torch.manual_seed(0)
        model = new_student(plain, tokenizer)
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)
            trainer = make_trainer(model, tokenizer, plain, tmp_path, data, data)
        return trainer, [trainer._prepare_inputs(batch) for batch in trainer.get_train_dataloader()]

    return made


@pytest.mark.parametrize("longest", [64, 24])
def test_tokens_and_labels_are_those_that_trl_makes(settings, tmp_path, capsys, longest: int) -> None:
    from trl import SFTConfig, SFTTrainer

    wordy = PAIRS.head(40).assign(intent="heron " * 30, prompt="far too long for a context of so few tokens")
    rows, tokenizer = pd.concat([PAIRS, wordy]), train_tokenizer([*PAIRS.intent, *PAIRS.prompt], 400, CODEC.tokens())
    data, how = command_pairs(rows, CODEC, settings), {"use_cpu": True, "bf16": False, "report_to": "none"}
    config = SFTConfig(str(tmp_path), max_length=None, completion_only_loss=True, **how)
    stock = SFTTrainer(new_student(settings, tokenizer), config, train_dataset=data, processing_class=tokenizer)
    ours = tokenized(data, tokenizer, longest)
    theirs = [row for row in stock.train_dataset if len(row["input_ids"]) <= longest]
    assert ours["input_ids"][:] == [row["input_ids"] for row in theirs]
    assert ours["labels"][:] == [row["labels"] for row in theirs]
    told = f"{len(data) - len(ours)} of 340 pairs left out: more than {longest} tokens"
    assert len(ours) < len(data) and told in capsys.readouterr().out, "none is cut"


def test_a_token_weighs_the_same_in_short_and_long_batches(trainer_of) -> None:
    from torch.nn.functional import cross_entropy

    trainer, batches = trainer_of()
    trainer.model.train()
    sizes, weights = [], []
    for batch in batches:
        labels = batch["labels"][:, 1:]
        logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        total = cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="sum")
        loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=(labels != -100).sum())
        weights.append(float(loss / total))
        sizes.append(int((labels != -100).sum()))
    assert max(sizes) > 2 * min(sizes), "short and long prompts are in batches of their own"
    assert weights == pytest.approx([1 / np.mean(sizes)] * len(weights), rel=0.01)


def test_the_model_computes_in_the_number_format_of_the_machine(trainer_of, monkeypatch) -> None:
    import torch

    monkeypatch.setattr("udrl_utils.trainer.device_and_dtype", lambda: ("cpu", torch.bfloat16, "as a test wants it"))
    trainer, batches = trainer_of()
    formats = set()
    block = trainer.model.transformer.h[0]
    for layer in (block.attn.c_attn, block.mlp.c_fc):
        layer.register_forward_hook(lambda _layer, _inputs, output: formats.add(output.dtype))
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batches[0])
    loss.backward()
    assert formats == {torch.bfloat16} and loss.dtype == torch.float32
    assert {weight.dtype for weight in trainer.model.parameters()} == {torch.float32}, "weights keep all their digits"
