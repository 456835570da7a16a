"""Tasks, ontology, intents, splits and the grammar teacher."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udrl_utils.dialogue import messages, parse_reply, split_reply
from udrl_utils.errors import SettingsError
from udrl_utils.grammar import GrammarTeacher, understand
from udrl_utils.parameters import resolve
from udrl_utils.settings import DistillationSettings
from udrl_utils.tasks import (
    KINDS,
    TASKS,
    assign_splits,
    clean_intent,
    distinct,
    load_intents,
    ontology,
    ontology_intents,
    subjects_of,
    with_article,
    words,
)


def test_the_ontology_is_broad() -> None:
    subjects = [subject for subject, _ in subjects_of("thing")]
    assert len(ontology()) >= 30
    assert len(set(subjects)) == len(subjects) >= 1500
    assert {domain.kind for domain in ontology()} == set(KINDS)
    for domain in ontology():
        assert min(map(len, (domain.scenes, domain.details, domain.templates, domain.follow_ups, domain.related))) >= 5


def test_intents_are_short_clean_and_reproducible() -> None:
    first, second = (list(itertools.islice(ontology_intents(3), 500)) for _ in range(2))
    assert first == second != list(itertools.islice(ontology_intents(4), 500))
    for intent in first:
        assert 1 <= len(intent.split()) <= 20
        assert "{" not in intent and intent == clean_intent(intent)


@pytest.mark.parametrize(
    ("noun", "phrase"),
    [("owl", "an owl"), ("unicorn", "a unicorn"), ("ukulele", "a ukulele"), ("umbrella", "an umbrella")],
)
def test_articles(noun: str, phrase: str) -> None:
    assert with_article(noun) == phrase


def test_no_train_intent_mentions_a_held_out_noun(smoke: dict) -> None:
    settings = resolve(DistillationSettings, smoke | {"n_intents": 2000})
    intents = load_intents(settings)
    splits, held_out = assign_splits(intents, settings)
    assert len(held_out) > 20
    assert set(splits.values()) == {"train", "validation", "test"}
    assert all(held_out.isdisjoint(words(intent)) for intent, split in splits.items() if split != "test")


def test_intents_come_from_files_of_every_kind(smoke: dict, tmp_path) -> None:
    contents = {
        "a.txt": "Koi Pond\n\nkoi pond \ntea",
        "a.csv": "intent\nKoi pond\ntea\n",
        "a.tsv": 'x\tintent\n1\tkoi "pond\n2\ttea\n',
    }
    contents["a.jsonl"] = '{"intent": "koi pond"}\n{"intent": "tea"}\n'
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
        settings = resolve(DistillationSettings, smoke | {"intents": str(tmp_path / name), "n_intents": 0})
        assert [intent.replace('"', "") for intent in load_intents(settings)] == ["koi pond", "tea"]


def test_bad_sources_are_one_line(smoke: dict, tmp_path) -> None:
    (tmp_path / "empty.csv").write_text("intent\n")
    (tmp_path / "other.csv").write_text("query\nkoi\n")
    for name, wanted in (
        ("empty.csv", "holds no intent"),
        ("other.csv", "has no column 'intent'"),
        ("none.csv", "cannot read"),
    ):
        settings = resolve(DistillationSettings, smoke | {"intents": str(tmp_path / name)})
        with pytest.raises(SettingsError, match=wanted) as caught:
            load_intents(settings)
        assert "\n" not in str(caught.value)


def test_messages_hold_instruction_examples_and_request() -> None:
    for task in TASKS:
        chat = messages(task, ["koi pond"], 4)
        assert [turn["role"] for turn in chat] == ["system", "user", "assistant", "user", "assistant", "user"]
        assert '"koi pond"' in chat[-1]["content"] and "4" in chat[-1]["content"]
        shared = messages(task, ["koi pond", "owl"], 4)
        assert [turn["role"] for turn in shared] == ["system", "user", "assistant", "user"]
        assert 'Intent 2: "owl"' in shared[-1]["content"]
        answers = [parse_reply(part, 3) for part in split_reply(shared[2]["content"], 2)]
        assert answers == [list(prompts) for _, prompts in TASKS[task].examples]


def test_the_teacher_understands_topics() -> None:
    topic = understand("show me a dinosaur birthday invitation for toddlers")
    assert (topic.gist, topic.noun, topic.domain.name) == (
        "dinosaur birthday invitation",
        "dinosaur",
        "prehistoric_life",
    )
    assert understand("zorblax near tavik").noun == "zorblax"


def test_the_teacher_is_deterministic_and_uneven() -> None:
    teacher, intents = GrammarTeacher(0, 0.25, 0.1), list(itertools.islice(distinct(ontology_intents(0)), 300))
    prompts = {i: teacher.prompts("text_to_image", i, 4) for i in intents}
    assert prompts == {i: GrammarTeacher(0, 0.25, 0.1).prompts("text_to_image", i, 4) for i in intents}
    lengths = [len(p.split()) for written in prompts.values() for p in written]
    assert min(lengths) <= 5 and max(lengths) >= 45
    keeps = [understand(i).noun in p for i, written in prompts.items() for p in written]
    assert 0.6 < sum(keeps) / len(keeps) < 0.95
    faithful = [
        understand(i).noun in p for i in intents for p in GrammarTeacher(0, 0.0, 0.0).prompts("text_to_image", i, 4)
    ]
    assert sum(faithful) / len(faithful) > 0.99


@given(st.text(min_size=1, max_size=200))
def test_the_teacher_answers_any_intent(text: str) -> None:
    intent = clean_intent(text)
    if intent:
        written = [GrammarTeacher(1, 0.3, 0.2).prompts(task, intent, 3) for task in TASKS]
        assert all(len(prompts) == 3 and all(prompts) for prompts in written)


@given(st.text(max_size=200))
def test_cleaning_is_idempotent(text: str) -> None:
    assert clean_intent(clean_intent(text)) == clean_intent(text)
