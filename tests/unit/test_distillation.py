"""Replies, filters, near-duplicates, shards; teachers over HTTP and in process."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udrl_utils import workers
from udrl_utils.errors import RunError, SettingsError
from udrl_utils.filters import drop_near_duplicates, reject_reasons
from udrl_utils.pairs import distil, kept_pairs, read_pairs
from udrl_utils.runs import RunFolder, shards_of
from udrl_utils.settings import AnnotationSettings, DistillationSettings, resolve
from udrl_utils.teachers import make_teacher
from udrl_utils.teachers.replies import Request, parse_reply, shown_examples, split_reply

plain = st.from_regex(r"[a-z][a-z ,]{0,40}[a-z]", fullmatch=True)


@given(st.text(max_size=400))
def test_parsing_never_raises(reply: str) -> None:
    assert all(isinstance(prompt, str) for prompt in parse_reply(reply, 8))


@given(st.lists(plain, min_size=1, max_size=6))
def test_every_form_of_list_is_read_back(prompts: list[str]) -> None:
    forms = [
        json.dumps(prompts),
        "Sure! Here they are:\n```json\n" + json.dumps(prompts, indent=1) + "\n```\nEnjoy.",
        json.dumps({"prompts": prompts}),
        "\n".join(f"{i}. {p}" for i, p in enumerate(prompts, 1)),
        "Here you go:\n\n" + "\n".join(f'- "{p}"' for p in prompts),
        "\n".join(prompts),
    ]
    for form in forms:
        assert parse_reply(form, len(prompts)) == prompts


@given(st.lists(st.lists(plain, min_size=1, max_size=4), min_size=2, max_size=5), st.integers(0, 200))
def test_a_shared_reply_is_taken_apart_even_when_it_is_cut_off(lists: list[list[str]], cut: int) -> None:
    reply = json.dumps({str(k): prompts for k, prompts in enumerate(lists, 1)})
    for form in (reply, f"Of course:\n```json\n{reply}\n```"):
        assert [parse_reply(part, 4) for part in split_reply(form, len(lists))] == lists
    for whole, part in zip(lists, split_reply(reply[:cut], len(lists)), strict=True):
        found = parse_reply(part, 4)
        assert found == whole[: len(found)]


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("", "empty"),
        ("a koi\x07pond at dawn", "control_characters"),
        ("I'm sorry, but I cannot help with that", "refusal"),
        ("a <b>koi</b> pond at dawn", "markup"),
        ("Koi Pond Garden.", "same_as_intent"),
        ("koi", "too_short"),
        ("koi " * 61, "too_long"),
        ("a koi pond <|end|> at dawn", "special_token"),
        ("<|length:3|>koi pond at dawn", "special_token"),
        ("a koi pond at dawn", None),
        ("Sure, here is a koi pond", "chatter"),
        ("see https://example.com for a koi pond", "markup"),
        pytest.param("a" * 100_000, "long_word", id="a word without end"),
        pytest.param("<b" * 50_000, "long_word", id="a tag without end"),
        ('"a koi pond", "a tea', "markup"),
        ("a koi " + "o" * 61, "long_word"),
        ("清晨 的 锦鲤 池塘", "other_script"),
    ],
)
def test_reasons(smoke: dict, prompt: str, reason: str | None) -> None:
    pairs = pd.DataFrame({"intent": "koi pond garden", "prompt": [prompt, "a quiet garden"]}, index=[3, 5])
    found = reject_reasons(pairs, resolve(DistillationSettings, smoke))
    assert found.to_dict() == {3: reason or "", 5: ""}


def test_a_held_out_noun_is_allowed_in_test_prompts_only(smoke: dict) -> None:
    requests = [Request("related_search", intent, 2) for intent in ("koi food", "fish tank")]
    written = [["an axolotl's pond", "koi pellets", "Koi Pellets!"], ["axolotls in a tank"]]
    splits, held_out = {"koi food": "train", "fish tank": "test"}, frozenset({"axolotl"})
    pairs, counts, _ = kept_pairs(requests, written, splits, "m", resolve(DistillationSettings, smoke), held_out)
    assert pairs.prompt.tolist() == ["koi pellets", "axolotls in a tank"]
    assert counts == {"asked": 4, "missing": 1, "held_out_word": 1, "near_duplicate": 1, "kept": 2}


def test_a_prompt_that_borrows_from_the_examples_is_dropped(smoke: dict) -> None:
    request = Request("related_search", "koi food", 4)
    [(_, (shown, *_)), *_] = shown_examples(request)
    prompts = ["koi food pellets", f"koi food and {shown}", "what do koi eat"]
    for form, kept in (("single", [prompts[0], prompts[2]]), ("list", prompts)):
        settings = resolve(DistillationSettings, smoke | {"teacher_form": form})
        pairs, counts, _ = kept_pairs([request], [prompts], {request.intent: "train"}, "m", settings, frozenset())
        assert pairs.prompt.tolist() == kept and counts["from_example"] == 3 - len(kept)


@given(st.lists(st.text("ab ", max_size=14), max_size=8), st.floats(0.05, 1))
def test_the_similarity_of_prompts_is_exact(prompts: list[str], threshold: float) -> None:
    def grams(prompt: str) -> set:
        tokens = prompt.split()
        return {tuple(tokens[i : i + 3]) for i in range(max(1, len(tokens) - 2))}

    kept: list[int] = []
    for index, new in enumerate(map(grams, prompts)):
        if all(len(new & grams(prompts[k])) / len(new | grams(prompts[k])) < threshold for k in kept):
            kept.append(index)
    assert drop_near_duplicates(prompts, threshold) == kept


def start(smoke: dict, **changes) -> tuple[DistillationSettings, RunFolder]:
    settings = resolve(DistillationSettings, smoke | changes)
    return settings, RunFolder(settings.run).start("01_pairs", settings)


def test_same_settings_same_bytes_and_resume(smoke: dict, outputs, monkeypatch: pytest.MonkeyPatch) -> None:
    counts, usage = distil(*start(smoke, run="whole"))
    assert counts["kept"] == len(read_pairs(RunFolder("whole")))
    settings, run = start(smoke, run="cut")
    real, calls = workers.write_shard, []

    def dies_at_the_second(*args, **notes) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(*args, **notes)

    monkeypatch.setattr(workers, "write_shard", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        distil(settings, run)
    assert len(list((run / "01_pairs").glob("*.parquet"))) == 1
    monkeypatch.setattr(workers, "write_shard", real)
    assert distil(settings, run) == (counts, usage)
    for part in (outputs / "whole" / "01_pairs").glob("*.parquet"):
        assert part.read_bytes() == (outputs / "cut" / "01_pairs" / part.name).read_bytes()


def test_splits_do_not_share_intents(smoke: dict, outputs) -> None:
    settings, run = start(smoke)
    distil(settings, run)
    pairs = read_pairs(run)
    assert pairs.groupby("intent").split.nunique().max() == 1
    assert pairs.pair_id.is_unique
    assert set(pairs.task) == set(settings.tasks)


def test_other_settings_are_refused_and_nothing_is_lost(smoke: dict, outputs) -> None:
    distil(*start(smoke))
    before = {file: file.read_bytes() for file in outputs.rglob("*.parquet")}
    with pytest.raises(RunError, match="was made with min_words=2, now min_words=3"):
        distil(*start(smoke, min_words=3))
    assert before == {file: file.read_bytes() for file in outputs.rglob("*.parquet")}


def test_nothing_builds_on_a_stage_while_it_is_made_again(smoke: dict, outputs, monkeypatch) -> None:
    settings, run = start(smoke)
    distil(settings, run)
    run.finish("01_pairs", settings)
    scoring = resolve(AnnotationSettings, smoke)
    assert distil(settings, run) and run.start("02_annotated", scoring), "what is complete is used again"
    shards_of(run / "01_pairs")[-1].unlink()
    monkeypatch.setattr(workers, "write_shard", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        distil(settings, run)
    with pytest.raises(RunError, match="has no 01_pairs yet: run notebooks/01_teacher_distillation"):
        run.start("02_annotated", scoring)


def test_edited_intents_are_refused_and_what_changes_no_result_is_not(smoke: dict, outputs, tmp_path) -> None:
    rows = [{"task": "text_to_image", "intent": f"koi {k}", "prompt": f"a koi pond in the year {k}"} for k in range(40)]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    changes = {"pairs": str(file), "near_duplicate": 1.0, "validation_fraction": 0.2}
    distil(*start(smoke, **changes))
    before = {file: file.read_bytes() for file in outputs.rglob("*.parquet")}
    distil(*start(smoke, **changes, teacher_timeout=3, teacher_prices=[1, 2], teacher_budget=9))
    file.write_text("\n".join(map(json.dumps, [*rows, {**rows[0], "intent": "tea"}])))
    with pytest.raises(RunError, match=r"was made with other content of pairs='.*mine.jsonl': choose another run name"):
        distil(*start(smoke, **changes))
    assert before == {file: file.read_bytes() for file in outputs.rglob("*.parquet")}


def test_given_pairs_replace_the_teacher(smoke: dict, outputs, tmp_path) -> None:
    rows = [
        {"task": "text_to_image", "intent": f"Koi {k}", "prompt": f"a koi pond number {k} {j} times at dawn"}
        for k in range(40)
        for j in range(3)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    changes = {"near_duplicate": 1.0, "validation_fraction": 0.2}
    settings, run = start(smoke, pairs=str(tmp_path / "pairs.jsonl"), **changes)
    assert distil(settings, run)[0]["kept"] == 120
    assert set(read_pairs(run).teacher) == {"given"}


def test_an_llm_teacher_needs_a_model(smoke: dict) -> None:
    with pytest.raises(SettingsError, match="teacher_model=''"):
        make_teacher(resolve(DistillationSettings, smoke | {"teacher": "openai"}))
