"""Pairs that people bring: long prompts, few pairs, and whatever is wrong with a file."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from udrl_utils.commands import Command, CommandCodec, CommandError
from udrl_utils.errors import SettingsError
from udrl_utils.evaluation import calibration_metrics, sample_calibration
from udrl_utils.evaluation import test_intents as intents_of_test_split
from udrl_utils.gpt2 import new_student, pretrained_student, train_tokenizer
from udrl_utils.own_pairs import given_pairs
from udrl_utils.pairs import distil, read_pairs
from udrl_utils.rewards import annotate
from udrl_utils.rows import WordSwaps, command_pairs, shared_words
from udrl_utils.runs import RunFolder
from udrl_utils.settings import AnalysisSettings, DistillationSettings, TrainingSettings, resolve
from udrl_utils.student import Student
from udrl_utils.teachers.recorded import recorded_name
from udrl_utils.text import words
from udrl_utils.trainer import make_room, plan_of, schedule, token_counts, tokenized

NOUNS = ("heron", "otter", "gecko", "badger", "falcon", "turtle", "salmon", "beetle", "walrus", "panther")
FILLER = ("quiet", "light", "falls", "over", "the", "old", "harbor", "while", "boats", "drift", "and", "bells", "ring")


def prompt_of(intent: str, size: int, seed: int = 0) -> str:
    """A prompt of so many words that begins with its intent."""
    rng = random.Random(f"{intent} {size} {seed}")
    return " ".join([*intent.split(), *rng.choices(FILLER, k=size)][:size])


def pairs(sizes: list[int], each: int = 2, intents: int = 60) -> pd.DataFrame:
    """`each` prompts for each intent, of the sizes in turn."""
    rows = [
        ("text_to_image", intent, prompt_of(intent, sizes[(k * each + j) % len(sizes)], j))
        for k, intent in enumerate(f"{NOUNS[k % 10]} number {k}" for k in range(intents))
        for j in range(each)
    ]
    return pd.DataFrame(rows, columns=["task", "intent", "prompt"])


def annotated(sizes: list[int], each: int = 2, intents: int = 60) -> pd.DataFrame:
    """The same with rewards, as notebook 02 leaves them."""
    table = pairs(sizes, each, intents)
    rng = np.random.default_rng(0)
    values = {"relevance": rng.random(len(table)), "diversity": rng.random(len(table)) if each > 1 else np.nan}
    names = {"pair_id": [f"{k}" for k in range(len(table))], "length": table.prompt.str.split().str.len()}
    return table.assign(split="train", **names, **values)


def given(smoke: dict, folder: Path, table: pd.DataFrame, **changes) -> DistillationSettings:
    """Settings of a run on these pairs."""
    table.to_csv(folder / "mine.csv", index=False)
    return resolve(DistillationSettings, smoke | {"pairs": str(folder / "mine.csv"), **changes})


def start(settings: DistillationSettings) -> RunFolder:
    return RunFolder(settings.run).start("01_pairs", settings)


# long prompts


def test_prompts_of_200_words_are_trained_on_without_a_cut(smoke: dict, capsys) -> None:
    table = annotated([60, 130, 199, 200], intents=8)
    settings = resolve(TrainingSettings, smoke | {"n_positions": 64, "word_swaps": 0})
    codec = CommandCodec.fit(table, ["length", "relevance", "diversity"], bins=4)
    assert codec.longest == 200 and "<|length:200|>" in codec.tokens()
    tokenizer = train_tokenizer([*table.intent, *table.prompt], 600, codec.tokens())
    model, data = new_student(settings, tokenizer), command_pairs(table, codec, settings)
    make_room(model, tokenizer, [data])
    [told] = capsys.readouterr().out.splitlines()
    longest, context = map(int, re.findall(r"has (\d+) tokens: a context of (\d+) instead of 64", told)[0])
    rows = tokenized(data, tokenizer, model.config.max_position_embeddings)
    assert len(rows) == len(table) and max(token_counts(rows)[0]) == longest <= context < longest + 64
    for row, prompt in zip(rows, table.prompt, strict=True):
        assert row["input_ids"][-1] == tokenizer.eos_token_id
        written = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
        assert " ".join(tokenizer.decode(written, skip_special_tokens=True).split()) == prompt
    student = Student(model, tokenizer, codec)
    assert student.most(longest // 2, 200) + longest // 2 <= context
    [[text]] = student.generate(["heron"], Command("text_to_image", length=200))
    assert isinstance(text, str)


@pytest.mark.parametrize("every", [1, 4, 7])
def test_the_length_still_to_come_is_noted_up_to_200_words(every: int) -> None:
    codec = CommandCodec.fit(annotated([5, 200]), ["length", "relevance"], bins=2)
    noted = [int(n) for n in re.findall(r"<\|length:(\d+)\|>", codec.count_down(prompt_of("koi", 200), every))]
    assert noted[0] == 200 and noted[1:] == [n for n in range(199, 0, -1) if n % every == 0]


def test_there_are_tokens_enough_for_long_words_and_long_prompts(smoke: dict) -> None:
    """The vocabulary has read another kind of text, so that each word takes several tokens."""
    codec = CommandCodec.fit(annotated([5, 200]), ["length"], bins=2)
    tokenizer = train_tokenizer(["a red fox"], 400, codec.tokens())
    settings = resolve(TrainingSettings, smoke | {"n_positions": 2048})
    student = Student(new_student(settings, tokenizer), tokenizer, codec)
    for size in (3, 40, 200):
        prompt = codec.count_down(" ".join(random.Random(size).choices(["the", "sky", "old", "a"], k=size)), 4)
        needed = len(tokenizer(prompt + tokenizer.eos_token).input_ids)
        assert 2.5 * size + 12 < needed <= student.most(20, size) or size == 3


def test_an_intent_that_is_cut_is_told(smoke: dict) -> None:
    codec = CommandCodec.fit(annotated([5, 20]), ["length"], bins=2)
    tokenizer = train_tokenizer(["a red fox"], 400, codec.tokens())
    student = Student(new_student(resolve(TrainingSettings, smoke), tokenizer), tokenizer, codec)
    with pytest.warns(UserWarning, match="this student reads the first 128"):
        student.generate(["heron " * 200], Command("text_to_image", length=3))


def test_a_base_learns_more_positions_and_keeps_what_it_knows(small_base: Path) -> None:
    import torch

    codec = CommandCodec.fit(annotated([5, 20, 200]), ["length"], bins=2)
    (model, tokenizer), (base, _) = pretrained_student(small_base, codec, 512), pretrained_student(small_base, codec)
    ids = tokenizer("koi pond " * 40, return_tensors="pt").input_ids
    assert model.config.n_positions == 512 and base.config.n_positions == 256
    wide, narrow = (each(input_ids=ids[:, :200]).logits for each in (model, base))
    known = len(tokenizer) - len(codec.tokens()) + 1  # what comes after begins anew each time
    assert torch.equal(wide[..., :known], narrow[..., :known])
    assert model(input_ids=ids.repeat(1, 4)[:, :400]).logits.isfinite().all()


# the amount of pairs


def test_the_schedule_follows_the_amount_of_pairs(smoke: dict) -> None:
    settings = resolve(TrainingSettings, smoke | {"epochs": 0, "base": "recorded"})
    amounts = (100, 1_000, 4_000, 20_000, 1_000_000)
    plans = [schedule(settings, amount, 40 * amount) for amount in amounts]
    for name in ("epochs", "dropout"):
        values = [getattr(plan, name) for plan in plans]
        assert values == sorted(values, reverse=True) and values[0] > values[-1], name
    steps = [plan.epochs * amount for plan, amount in zip(plans, amounts, strict=True)]
    assert steps == sorted(steps), "more pairs are never trained on for fewer steps"
    assert plans[-1].epochs == 1 and plans[-1].dropout == 0
    for plan in plans:
        assert "\n" not in plan.reason
        assert f"{plan.epochs:g} passes; learning rate 0.002; dropout {plan.dropout:g}" in plan.reason
        assert plan.of(settings).epochs == plan.epochs


def test_prompts_of_a_kind_that_the_base_has_read_take_two_passes(smoke: dict) -> None:
    settings = resolve(TrainingSettings, smoke | {"epochs": 0, "base": "recorded"})
    recorded, own = (annotated([5, 20]).assign(teacher=teacher) for teacher in (recorded_name(), "given"))
    tokenizer = train_tokenizer(["a red fox"], 400, [])
    plans = [plan_of(settings, rows, tokenizer) for rows in (recorded, own)]
    assert [plan.epochs for plan in plans] == [2, 8] and "the base has read" in plans[0].reason
    assert plan_of(settings.model_copy(update={"base": ""}), recorded, tokenizer).epochs == 8


def test_what_the_settings_say_is_kept(smoke: dict) -> None:
    settings = resolve(TrainingSettings, smoke | {"epochs": 0.4, "learning_rate": 2e-4, "base": "recorded"})
    plan = schedule(settings, 1_000, 40_000)
    assert (plan.epochs, plan.dropout) == (0.4, 0)
    assert "0.4 passes as epochs says, 0 would take 8; learning rate 0.0002" in plan.reason


# words that are swapped


def test_a_coined_word_stands_in_no_prompt_whose_intent_lacks_it(smoke: dict) -> None:
    settings = resolve(TrainingSettings, smoke | {"word_swaps": 1.0})
    table = annotated([5, 12, 40, 120])
    tokenizer = train_tokenizer([*table.intent, *table.prompt], 600, [])
    known = {w for text in (*table.intent, *table.prompt) for w in words(text)}
    swapped, changed = WordSwaps(table, settings, tokenizer), 0
    for row in table.to_dict("records"):
        intent, prompt = swapped(row)
        assert set(words(prompt)) - known <= set(words(intent))
        assert len(prompt.split()) == len(row["prompt"].split()), "lengths stay as they were"
        changed += intent != row["intent"]
    assert changed > len(table) / 4


@pytest.mark.parametrize(
    ("intent", "prompt", "shared"),
    [
        ("heron on a boat", "A heron stands on a boat", ["boat", "heron"]),
        ("heron on a boat", "A heron among herons on a boat", ["boat"]),
        ("herons on a boat", "A heron on a boat", ["boat"]),
        ("heron's boat", "A heron in the heron's boat", ["boat"]),
        ("running shoes", "shoes of one who runs, running", ["shoes"]),
        ("koi", "koi", []),
    ],
)
def test_a_word_in_several_forms_is_not_swapped(intent: str, prompt: str, shared: list[str]) -> None:
    assert shared_words(intent, prompt) == shared


def test_long_prompts_that_share_little_are_swapped_in_less_often(smoke: dict) -> None:
    settings = resolve(TrainingSettings, smoke | {"word_swaps": 1.0})
    shares = []
    for size in (12, 150):
        table = annotated([size], intents=200)
        swapped = WordSwaps(table, settings)
        shares.append(np.mean([swapped(row)[0] != row["intent"] for row in table.to_dict("records")]))
    assert shares[0] > 0.6 and shares[1] < shares[0] / 2


# what is wrong with a file


@pytest.mark.parametrize(
    ("table", "changes", "told"),
    [
        (pairs([300]), {},
         "no prompt has min_words=2 to max_words=40 words; they have 300 in the median, and max_words may be up to 2"),
        (pairs([30]).rename(columns={"intent": "prompt", "prompt": "intent"}), {},
         r"intents have 30 words in the median and prompts 3: are the columns intent and prompt swapped\? Allowed is"),
        (pairs([9]).assign(task="haiku"), {}, "unknown task 'haiku'; allowed are text_to_image"),
        (pairs([9]).assign(intent=""), {}, "holds no pair of the tasks .* that has an intent"),
        (pairs([9]), {"tasks": ["related_search"]}, "holds no pair of the tasks related_search"),
        (pairs([9], intents=2), {}, r"(train split|_fraction=0.\d+: none of the 2 intents)"),
    ],
    ids=["300 words", "swapped columns", "unknown task", "no intents", "no such task", "two intents"],
)  # fmt: skip
def test_a_bad_file_is_one_line_before_any_work(smoke, outputs, tmp_path, monkeypatch, table, changes, told) -> None:
    monkeypatch.setattr("udrl_utils.workers.write_shard", lambda *args, **notes: pytest.fail("work has begun"))
    settings = given(smoke, tmp_path, table, **changes)
    with pytest.raises(SettingsError, match=told) as caught:
        distil(settings, start(settings))
    assert "\n" not in str(caught.value) and "mine.csv" in str(caught.value)


def test_max_words_is_bounded(smoke: dict) -> None:
    assert resolve(DistillationSettings, smoke | {"max_words": 200}).max_words == 200
    with pytest.raises(SettingsError, match="max_words=201 should be less than or equal to 200"):
        resolve(DistillationSettings, smoke | {"max_words": 201})


@pytest.mark.parametrize(
    ("sizes", "changes", "told"),
    [
        ([20, 130], {"max_words": 60}, "60 of 120 prompts dropped: too_long 50.0%; max_words=130 keeps them"),
        ([20, 130, 300], {"max_words": 60},
         "80 of 120 prompts dropped: too_long 66.7%; max_words=200 keeps all but 40"),
        ([20, 300], {"max_words": 200}, "60 of 120 prompts dropped: too_long 50.0%; 200 is the most"),
        ([5, 20], {"min_words": 8}, "60 of 120 prompts dropped: too_short 50.0%; min_words=5 keeps the short ones"),
        ([20, 21], {}, "0 of 120 prompts dropped"),
    ],
    ids=str,
)  # fmt: skip
def test_what_was_dropped_is_told_with_the_setting_that_keeps_it(
    smoke, outputs, tmp_path, capsys, sizes, changes, told
) -> None:
    settings = given(smoke, tmp_path, pairs(sizes), **changes)
    counts, _ = distil(settings, start(settings))
    assert capsys.readouterr().out.splitlines()[-1] == told
    assert counts["asked"] == 120 and counts["kept"] == len(read_pairs(RunFolder(settings.run)))


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_empty_prompts_are_counted_dropped_and_told(smoke, outputs, tmp_path, capsys, ending: str) -> None:
    table = pairs([20])
    table.loc[::4, "prompt"] = None
    table.loc[1, "prompt"] = "two lines\nof one prompt\n\nare one prompt"
    table.loc[3, "intent"] = None
    file = tmp_path / f"mine.{ending}"
    {
        "csv": lambda: table.to_csv(file, index=False),
        "jsonl": lambda: table.to_json(file, orient="records", lines=True),
        "parquet": lambda: table.to_parquet(file),
    }[ending]()
    settings = resolve(DistillationSettings, smoke | {"pairs": str(file)})
    counts, _ = distil(settings, start(settings))
    lines = capsys.readouterr().out.splitlines()
    assert "left out 1 pairs without an intent" in lines[0]
    assert lines[-1] == "30 of 119 prompts dropped: empty 25.2%" and counts["empty"] == 30
    kept = read_pairs(RunFolder(settings.run))
    assert "two lines of one prompt are one prompt" in set(kept.prompt) and "none" not in set(kept.intent)


def test_prompts_are_kept_as_they_are_given(smoke: dict, tmp_path) -> None:
    odd = ["1. a list item, not one", '"quoted" and [bracketed] words', "- a dash before a prompt"]
    settings = given(smoke, tmp_path, pd.DataFrame({"task": "text_to_image", "intent": "Koi", "prompt": odd}))
    assert list(given_pairs(settings).values()) == [odd]


# one prompt per intent


def singles_and_sets() -> pd.DataFrame:
    alone = annotated([9, 20, 30], each=1)
    return pd.concat([annotated([9, 20, 30]), alone.assign(task="related_search")], ignore_index=True)


def test_a_task_without_sets_is_not_commanded_diversity(capsys) -> None:
    names = ["length", "relevance", "diversity"]
    codec = CommandCodec.fit(singles_and_sets(), names, bins=4)
    assert capsys.readouterr().out == (
        "diversity is not commanded for related_search: each of its intents has one prompt, and diversity compares the "
        "prompts of an intent\n"
    )
    assert codec.rewards == codec.rewards_of("text_to_image") == names
    assert codec.rewards_of("related_search") == ["length", "relevance"]
    with pytest.raises(CommandError, match="'diversity' was not trained for task='related_search', which knows length"):
        codec.encode(Command("related_search", diversity=0.5))
    row = {"task": "related_search", "length": 9, "relevance": 0.5, "diversity": 0.5}
    assert "diversity" not in codec.encode_achieved(pd.DataFrame([row]))[0]
    asked = Command("related_search", length=20, relevance=0.5)
    assert codec.feasible(asked) == (asked, "")
    assert codec.complete(singles_and_sets()).task.unique().tolist() == ["text_to_image"]
    levels = codec.achieved_levels(singles_and_sets())
    assert levels.diversity.isna().sum() == 60 and levels.relevance.notna().all()


def test_test_intents_of_a_task_without_sets_are_taken_all_the_same(smoke: dict) -> None:
    settings = resolve(AnalysisSettings, smoke)
    table = singles_and_sets().assign(split="test")
    found = intents_of_test_split(table, settings)
    assert {task: len(pool) for task, pool in found.items()} == {"text_to_image": 3, "related_search": 3}


# which lengths are measured


def test_usual_lengths_are_those_of_the_train_split() -> None:
    sizes = [1] + [10, 12, 15] * 40 + [90]
    codec = CommandCodec.fit(annotated(sizes, intents=61), ["length", "relevance"], bins=2)
    assert codec.usual_lengths("text_to_image") == [10, 11, 12, 13, 14, 15]
    long = CommandCodec.fit(annotated(list(range(30, 180)), intents=300), ["length", "relevance"], bins=2)
    asked = long.usual_lengths("text_to_image")
    assert len(asked) == 37 and asked[0] == 33 and asked[-1] == 176 and set(np.diff(asked)) <= {3, 4}
    old = CommandCodec(long.bins, 60, long.edges)
    assert old.usual_lengths("text_to_image") == list(range(4, 41)), "a student of before knows no usual lengths"


class Writer:
    """Writes prompts of the length that is asked for."""

    def __init__(self, codec: CommandCodec):
        self.codec = codec

    def generate(self, intents, commands, n, **_):
        return [[prompt_of(i, c.length or 9)] * n for i, c in zip(intents, commands, strict=True)]


def test_calibration_asks_for_the_lengths_that_the_data_have(smoke: dict) -> None:
    from udrl_utils.samples import Sampler

    codec = CommandCodec.fit(singles_and_sets(), ["length", "relevance", "diversity"], bins=2)
    settings = resolve(AnalysisSettings, smoke)
    pool = {task: ["heron number 1", "otter number 2"] for task in codec.edges}
    sampler = Sampler(Writer(codec), ["length"], lambda texts: None)
    samples = sample_calibration(sampler, pool, settings)
    lengths = samples[samples.reward == "length"]
    for task in pool:
        assert sorted(lengths[lengths.task == task].asked_length.unique()) == codec.usual_lengths(task)
    assert set(samples[samples.reward == "diversity"].task) == {"text_to_image"}


def test_within_5_percent_is_1_word_up_to_40_words(smoke: dict) -> None:
    settings = resolve(AnalysisSettings, smoke)
    rows = {"task": "t", "reward": "length", "set": range(6), "asked_length": [20, 20, 40, 100, 100, 200]}
    measured = pd.DataFrame({**rows, "length": [21, 22, 42, 105, 106, 190]})
    found = calibration_metrics(measured, settings)["all"]["length"]
    assert found["within_5_percent"] == 3 / 6 and found["within_1"] == 1 / 6


def test_rewards_of_single_prompts_have_no_diversity() -> None:
    table = annotate(pairs([9], each=1), ["diversity"], lambda texts: np.ones((len(texts), 2)) / np.sqrt(2))
    assert table.diversity.isna().all()
