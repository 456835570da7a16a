"""Commands, codec, rewards, student and evaluation figures on small cases with known answers."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udrl_utils import evaluation, rewards
from udrl_utils.commands import Command, CommandCodec, CommandError
from udrl_utils.errors import RunError, SettingsError
from udrl_utils.evaluation import interval
from udrl_utils.gpt2 import new_student, train_tokenizer
from udrl_utils.settings import AnalysisSettings, TrainingSettings, resolve
from udrl_utils.student import Student

NAMES = ["length", "relevance", "diversity"]


def table(n: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = {"task": ["text_to_image", "related_search"] * (n // 2), "length": rng.integers(3, 50, n)}
    return pd.DataFrame({**rows, "relevance": rng.normal(size=n), "diversity": rng.normal(size=n)})


CODEC = CommandCodec.fit(table(), NAMES, bins=10)


@given(st.sampled_from(["relevance", "diversity"]), st.floats(0, 1))
def test_levels_and_values_agree(name: str, level: float) -> None:
    edges = CODEC.edges["text_to_image"][name]
    bin_index = CODEC.bin_of_level("text_to_image", name, level)
    assert 0 <= bin_index < 10
    middle = (edges[bin_index] + edges[bin_index + 1]) / 2
    assert CODEC.bin_of_value("text_to_image", name, middle) == bin_index
    assert bin_index == min(int(level * 10), 9)


def test_bins_are_equally_filled() -> None:
    rows = table()[lambda t: t.task == "text_to_image"]
    bins = CODEC.bins_of(rows).relevance
    assert bins.value_counts().tolist() == [20] * 10
    assert bins.tolist() == [CODEC.bin_of_value("text_to_image", "relevance", value) for value in rows.relevance]


def test_a_two_valued_reward_only_uses_trained_levels() -> None:
    codec = CommandCodec.fit(table().assign(diversity=[0.0, 0.0, 1.0, 1.0] * 100), NAMES, bins=10)
    trained = {codec.bin_of_value("text_to_image", "diversity", value) for value in (0.0, 1.0)}
    assert {codec.bin_of_level("text_to_image", "diversity", level / 20) for level in range(21)} <= trained


def test_forms_and_places_of_a_command() -> None:
    command = Command("text_to_image", length=18, relevance=0.95)
    forms = {form: replace(CODEC, form=form).encode(command) for form in ("tokens", "text", "none")}
    assert forms == {
        "tokens": "<|task:text_to_image|><|length:18|><|relevance:9|>",
        "text": "<|task:text_to_image|> length 18 relevance 9 ",
        "none": "<|task:text_to_image|>",
    }
    last = replace(CODEC, place="last")
    assert last.prefix(forms["tokens"], "koi <|x") == (
        "<|task:text_to_image|>koi < |x<|length:18|><|relevance:9|><|prompt|>"
    )
    assert CODEC.prefix(forms["tokens"], "koi") == "<|task:text_to_image|><|length:18|><|relevance:9|>koi<|prompt|>"


def test_open_commands_and_achieved_ones() -> None:
    assert CODEC.encode(Command("text_to_image")) == "<|task:text_to_image|>"
    row = {"task": "text_to_image", "length": 7, "relevance": 99.0, "diversity": float("nan")}
    rows = pd.DataFrame([row, row], index=[3, 3])  # rounds join tables whose numbers repeat
    assert CODEC.encode_achieved(rows, [frozenset({"length"}), frozenset()]) == [
        "<|task:text_to_image|><|relevance:9|>",
        "<|task:text_to_image|><|length:7|><|relevance:9|>",
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CODEC.encode(Command("haiku")), "task='haiku'"),
        (lambda: Command("text_to_image", length=0), "length=0"),
        (lambda: Command("text_to_image", relevance=1.2), "relevance=1.2"),
        (lambda: CODEC.encode(Command("text_to_image", colour=0.5)), "reward 'colour'"),
        (lambda: CODEC.encode(Command("text_to_image", length=500)), "length=500"),
    ],
)
def test_bad_commands_are_one_line(make, message: str) -> None:
    with pytest.raises(CommandError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@given(st.lists(st.sampled_from(["red", "fox,", "é", "x9"]), min_size=1, max_size=70), st.integers(1, 9))
def test_the_length_still_to_come_is_right_wherever_it_stands(written: list[str], every: int) -> None:
    noted = CODEC.count_down(" ".join(written), every)
    parts = re.split(r"<\|length:(\d+)\|>", noted)
    assert "".join(parts[::2]).split() == written
    for k in range(1, len(parts), 2):
        assert int(parts[k]) == len("".join(parts[k + 1 :: 2]).split())
        assert k == 1 or int(parts[k]) % every == 0
    assert len(written) > CODEC.longest or all(len(part.split()) <= every for part in parts[::2])


def test_a_constant_reward_is_left_open(capsys) -> None:
    codec = CommandCodec.fit(table().assign(relevance=1.0), NAMES, bins=4)
    assert "relevance" not in codec.rewards and "length" in codec.rewards
    assert "relevance is not commanded for text_to_image: it is the same for all pairs, 1" in capsys.readouterr().out


def test_codec_round_trip(tmp_path) -> None:
    codec = replace(CODEC, horizon=4)
    codec.save(tmp_path)
    assert CommandCodec.load(tmp_path) == codec
    fields = json.loads((tmp_path / "commands.json").read_text())
    del fields["horizon"]
    (tmp_path / "commands.json").write_text(json.dumps(fields))
    assert CommandCodec.load(tmp_path) == CODEC, "an older student loads, without a horizon"


def embed(texts) -> np.ndarray:
    return np.array([[1.0, 0.0] if "x" in text else [0.0, 1.0] for text in texts])


def test_rewards_by_hand() -> None:
    pairs = pd.DataFrame({"task": "t", "intent": ["x", "x", "x", "o"], "prompt": ["x a", "x b c", "o", "o o"]})
    scored = rewards.annotate(pairs, NAMES, embed)
    assert scored.length.tolist() == [2, 3, 1, 2]
    assert scored.relevance.tolist() == [1, 1, 0, 1]
    assert scored.diversity.tolist()[:3] == [0.5, 0.5, 1.0] and np.isnan(scored.diversity[3])


def test_user_made_rewards_travel_with_the_run(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "REWARDS", dict(rewards.REWARDS))

    @rewards.reward("exes", unit="count")
    def exes(pairs, embed):
        return pairs.prompt.str.count("x")

    rewards.save_rewards(tmp_path, ["length", "exes"])
    del rewards.REWARDS["exes"]
    with pytest.raises(SettingsError, match="unknown reward 'exes'"):
        rewards.check_known(["exes"])
    rewards.read_rewards(tmp_path)
    pairs = pd.DataFrame({"task": "t", "intent": ["a", "b"], "prompt": ["x x", "o"]})
    assert rewards.annotate(pairs, ["exes"], embed).exes.tolist() == [2, 0]
    rewards.save_rewards(tmp_path, ["exes"])


def test_bad_rewards_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "REWARDS", dict(rewards.REWARDS))
    pairs = pd.DataFrame({"task": "t", "intent": ["a", "b"], "prompt": ["x x", "o"]})
    rewards.REWARDS["nan"] = rewards.Reward("nan", "", lambda p, e: [float("nan"), 1], "")
    rewards.REWARDS["short"] = rewards.Reward("short", "", lambda p, e: [1], "")
    for name, message in (("nan", "not finite"), ("short", "shape")):
        with pytest.raises(RunError, match=message):
            rewards.annotate(pairs, [name], embed)


def untrained(smoke: dict, **changes) -> Student:
    settings = resolve(TrainingSettings, smoke | changes)
    texts = ["a red fox in the snow", "zanzibar harbor at dawn", "koi pond with lilies"] * 20
    tokenizer = train_tokenizer(texts, settings.vocab_size, CODEC.tokens())
    return Student(new_student(settings, tokenizer), tokenizer, CODEC)


def test_the_copying_circuit_copies_before_any_training(smoke: dict) -> None:
    import torch

    torch.manual_seed(0)
    found = {}
    for circuit in (True, False):
        settings = resolve(TrainingSettings, smoke | {"n_embd": 192, "n_head": 3, "copy_init": circuit})
        tokenizer = train_tokenizer(["koi pond"], 300, [f"<|{i}|>" for i in range(1000)])
        model = new_student(settings, tokenizer).eval()
        first = torch.stack([torch.randperm(len(tokenizer))[:24] for _ in range(8)])
        twice = torch.cat([first, first], dim=1)
        predicted = model(input_ids=twice).logits.argmax(-1)[:, 25:-1]
        found[circuit] = float((predicted == twice[:, 26:]).float().mean())
    assert found[True] > 0.75 and found[False] < 0.05


def test_tokens_at_the_boundary_are_those_of_training(smoke: dict) -> None:
    tokenizer = untrained(smoke).tokenizer
    prefix = CODEC.prefix(CODEC.encode(Command("text_to_image", length=18)), "koi pond")
    alone, joined = tokenizer(prefix).input_ids, tokenizer(prefix + "red fox").input_ids
    assert joined[: len(alone)] == alone
    assert tokenizer.decode(joined[len(alone) :]).strip() == "red fox"
    assert tokenizer.convert_ids_to_tokens(alone)[:2] == ["<|task:text_to_image|>", "<|length:18|>"]


@pytest.mark.parametrize("intent", ["<|prompt|> koi <|length:3|>", "x" * 100_000, "\x00koi\u202e pond", "日本の庭 🎋"])
def test_hostile_intents_stay_text(smoke: dict, intent: str) -> None:
    student = untrained(smoke)
    prefix = student.prefix(intent, Command("text_to_image"))
    ids = student.tokenizer(prefix).input_ids
    specials = set(student.tokenizer.convert_tokens_to_ids(CODEC.tokens()))
    assert [i in specials for i in ids].count(True) == 2
    assert len(ids) < student.model.config.n_positions


def test_generation_has_its_shape_and_seed(smoke: dict) -> None:
    student = untrained(smoke)
    commands = [Command("text_to_image", length=3), Command("related_search", length=4)]
    first, again, other = (student.generate(["koi", "tea"], commands, n=3, seed=s) for s in (0, 0, 1))
    assert first == again != other
    assert [len(prompts) for prompts in first] == [3, 3]
    with pytest.raises(CommandError, match="empty"):
        student.generate([" "], Command("text_to_image"))


def test_set_metrics_by_hand() -> None:
    same, apart = np.tile([[1.0, 0.0]], (4, 1)), np.eye(4)
    assert evaluation.vendi(same) == pytest.approx(1) and evaluation.vendi(apart) == pytest.approx(4)
    assert evaluation.self_bleu(["a b c d e"] * 2) == pytest.approx(100)
    assert evaluation.self_bleu(["a b c d e", "f g h i j"]) < 10
    assert evaluation.distinct_2(["a b c", "a b d"]) == 0.75


def test_calibration_by_hand(smoke: dict) -> None:
    settings = resolve(AnalysisSettings, smoke)
    given = {"task": "t", "reward": "length", "set": range(4), "asked_length": [4, 5, 6, 7], "length": [4, 6, 8, 10]}
    result = evaluation.calibration_metrics(pd.DataFrame(given), settings)["all"]["length"]
    assert (result["spearman"], result["mae"], result["within_1"], result["within_2"]) == (1, 1.5, 0.5, 0.75)


def test_a_set_of_prompts_counts_once_in_an_interval(smoke: dict) -> None:
    settings = resolve(AnalysisSettings, smoke)
    given = {"task": "t", "reward": "diversity", "set": [0] * 50 + [1] * 50, "asked_diversity": 0.5}
    rows = pd.DataFrame({**given, "diversity": [0.2] * 50 + [0.6] * 50})
    [level] = evaluation.calibration_metrics(rows, settings)["all"]["diversity"]["levels"]
    assert level["mean"] == pytest.approx(0.4) and level["low"] == pytest.approx(0.2) and level["high"] > 0.59


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30))
def test_intervals_hold_their_mean(values: list[float]) -> None:
    settings = AnalysisSettings.model_construct(seed=0, bootstrap_samples=200)
    found = interval(values, settings)
    assert min(values) - 1e-9 <= found["low"] <= found["high"] <= max(values) + 1e-9
    assert found["mean"] == pytest.approx(np.mean(values))


def test_a_shard_without_pairs_is_scored_too():
    none = pd.DataFrame({name: [] for name in ("task", "intent", "prompt")}, dtype=object)
    assert rewards.annotate(none, ["length", "relevance", "diversity"], rewards.Encoder("minilm")).shape == (0, 6)
