"""Tasks, ontology, intents, splits, and how a teacher is asked."""

from __future__ import annotations

import itertools
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as checks
from hypothesis import strategies as st

from udrl_utils.base import held_out as base_never_reads
from udrl_utils.errors import SettingsError
from udrl_utils.filters import borrows
from udrl_utils.ontology import ontology, ontology_intents, plural, subjects_of, with_article
from udrl_utils.pairs import plan
from udrl_utils.settings import ROOT, DistillationSettings, resolve
from udrl_utils.splits import HELD_OUT, assign_splits, normal_form
from udrl_utils.tables import load_intents
from udrl_utils.tasks import TASKS, load_data
from udrl_utils.teachers.replies import (
    Request,
    messages,
    parse_reply,
    shown_examples,
    single_messages,
    split_reply,
)
from udrl_utils.text import clean_intent, lower_intent, words


def test_the_ontology_is_broad() -> None:
    subjects = [subject for subject, _ in subjects_of("thing")]
    assert len(ontology()) >= 30
    assert len(set(subjects)) == len(subjects) >= 1500
    assert {domain.kind for domain in ontology()} >= set(load_data("intents")["text_to_image"]) - {"any"}
    for domain in ontology():
        assert min(map(len, (domain.scenes, domain.details, domain.templates, domain.follow_ups, domain.related))) >= 5


@pytest.mark.parametrize("task", TASKS)
def test_intents_are_short_clean_and_reproducible(task: str) -> None:
    first, second = (list(itertools.islice(ontology_intents(3, task), 500)) for _ in range(2))
    assert first == second != list(itertools.islice(ontology_intents(4, task), 500))
    assert len(set(first)) > 450
    for intent in first:
        assert 1 <= len(intent.split()) <= 20
        assert "{" not in intent and intent == lower_intent(intent) and intent.count('"') % 2 == 0


def test_quotes_that_belong_to_an_intent_stay() -> None:
    assert lower_intent('Sign that says "Open Late".') == 'sign that says "open late"'
    assert [lower_intent(text) for text in ('"koi pond"', "'koi pond'", 'koi pond"')] == ["koi pond"] * 3


def test_plurals() -> None:
    assert list(map(plural, ("box", "pair of headphones", "leaf", "fireman"))) == [
        "boxes",
        "pairs of headphones",
        "leaves",
        "firemen",
    ]


@pytest.mark.parametrize(
    ("noun", "phrase"),
    [("owl", "an owl"), ("unicorn", "a unicorn"), ("ukulele", "a ukulele"), ("umbrella", "an umbrella")],
)
def test_articles(noun: str, phrase: str) -> None:
    assert with_article(noun) == phrase


def test_no_train_intent_mentions_a_held_out_noun(smoke: dict) -> None:
    settings = resolve(DistillationSettings, smoke | {"teacher": "local", "n_intents": 2000})
    intents = [request.intent for request in plan(settings)]
    splits, held_out = assign_splits(intents, settings)
    assert len(held_out) > 20
    assert set(splits.values()) == {"train", "validation", "test"}
    assert all(held_out.isdisjoint(words(intent)) for intent, split in splits.items() if split != "test")


LAPTOP = yaml.safe_load((ROOT / "notebooks" / "presets" / "laptop.yaml").read_text())
SETTINGS = resolve(DistillationSettings, LAPTOP | {"test_fraction": HELD_OUT})
INTENTS = list(itertools.islice(ontology_intents(5, "related_search"), 400))
CHANGES = (
    str.upper,
    lambda intent: f"{intent}!",
    lambda intent: f"the {intent}",
    lambda intent: " ".join(reversed(intent.split())),
    lambda intent: re.sub(r"([^\W\d_][bdgklmnprt])(?= |$)", r"\1s", intent),  # plurals
    lambda intent: intent.replace(" ", "-"),
)


@checks(deadline=None)
@given(st.sampled_from(INTENTS), st.lists(st.sampled_from(CHANGES), min_size=1, max_size=4))
def test_near_duplicate_intents_are_in_one_split_and_the_base_reads_no_test_intent(intent: str, changes: list) -> None:
    other = intent
    for change in changes:
        other = change(other)
    splits, _ = assign_splits([*INTENTS, other], SETTINGS)
    same = [name for name in splits if normal_form(name) == normal_form(other)]
    assert intent in same and {splits[name] for name in same} == {splits[intent]}
    assert splits[intent] != "test" or (base_never_reads(intent) and base_never_reads(other))


@pytest.mark.parametrize("other", ["cats poster", "Cat poster!", "posters, the cat's", "“cat-poster”"])
def test_a_normal_form_is_that_of_near_duplicates(other: str) -> None:
    assert normal_form("cat poster") == normal_form(other) != normal_form("catalog poster")
    assert normal_form("?!") == "" != normal_form("清晨")


def test_tasks_take_turns_and_more_intents_begin_with_the_same_ones(smoke: dict) -> None:
    few, many = (plan(resolve(DistillationSettings, smoke | {"teacher": "local", "n_intents": n})) for n in (40, 90))
    assert many[:40] == few and len(set(many)) == 90
    assert [request.task for request in few[:4]] == smoke["tasks"]
    with pytest.raises(SettingsError, match="n_intents=0 must be at least 1"):
        plan(resolve(DistillationSettings, smoke | {"teacher": "local", "n_intents": 0}))


def test_a_file_without_intents_is_one_line(smoke: dict, tmp_path) -> None:
    (tmp_path / "empty.csv").write_text("intent\n")
    with pytest.raises(SettingsError, match=r"^[^\n]*holds no intent$"):
        load_intents(resolve(DistillationSettings, smoke | {"intents": str(tmp_path / "empty.csv")}))


def test_messages_hold_instruction_examples_and_request() -> None:
    for task in TASKS:
        chat = messages(task, ["koi pond"], 4)
        assert [turn["role"] for turn in chat] == ["system", "user", "assistant", "user", "assistant", "user"]
        assert '"koi pond"' in chat[-1]["content"] and "4" in chat[-1]["content"]
        shared = messages(task, ["koi pond", "owl"], 4)
        assert [turn["role"] for turn in shared] == ["system", "user", "assistant", "user"]
        assert 'Intent 2: "owl"' in shared[-1]["content"]
        answers = [parse_reply(part, 3) for part in split_reply(shared[2]["content"], 2)]
        assert answers == [list(prompts) for _, prompts in TASKS[task].examples[:2]]


@pytest.mark.parametrize("task", TASKS)
def test_a_single_prompt_is_asked_for_by_length_with_examples_of_that_length(task: str) -> None:
    request = Request(task, "koi pond", 8)
    chats = [single_messages(request, number) for number in range(6)]
    assert chats[:3] == chats[3:] and len({str(chat[:-1]) for chat in chats[:3]}) == 3
    for size, chat in enumerate(chats[:3]):
        assert [turn["role"] for turn in chat] == ["system", *["user", "assistant"] * 3, "user"]
        assert TASKS[task].lengths[size] in chat[0]["content"] and chat[-1]["content"] == "koi pond"
        low, high = map(int, TASKS[task].lengths[size].split(" to "))
        assert all(low <= len(turn["content"].split()) <= high for turn in chat if turn["role"] == "assistant")


def test_examples_vary_by_intent_and_what_is_borrowed_from_them_is_known() -> None:
    intents = list(itertools.islice(ontology_intents(0, "text_to_image"), 60))
    shown = {tuple(i for i, _ in shown_examples(Request("text_to_image", intent, 8))) for intent in intents}
    assert len(shown) == 4
    request = next(r for i in intents if "axolotl" in str(shown_examples(r := Request("text_to_image", i, 8))))
    assert borrows("text_to_image", request.intent, "an axolotl in the night")
    assert not borrows("text_to_image", request.intent, "a quiet night")
    assert not borrows("text_to_image", request.intent + " axolotl", "an axolotl in the night")
    [(_, (shown, *_)), *_] = shown_examples(request)
    assert borrows("text_to_image", request.intent, f"a red kite, {' '.join(shown.split()[-4:])}")


@given(st.text(max_size=200))
def test_cleaning_is_idempotent(text: str) -> None:
    assert clean_intent(clean_intent(text)) == clean_intent(text)
    assert lower_intent(lower_intent(text)) == lower_intent(text)
