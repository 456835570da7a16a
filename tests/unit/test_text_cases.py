"""What people type and bring, case by case: files, texts, other languages, tasks and rewards of their own, word lists.

A case that was reported in public names the report.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from udrl_utils import cli, rewards
from udrl_utils.commands import Command, CommandCodec, CommandError
from udrl_utils.engine import BROKEN_REDRAWS, REDRAWS, Engine
from udrl_utils.errors import SettingsError
from udrl_utils.filters import reject_reasons
from udrl_utils.gpt2 import new_student, train_tokenizer
from udrl_utils.ontology import plural
from udrl_utils.own_pairs import given_pairs
from udrl_utils.pairs import distil, dropped_prompts, read_pairs
from udrl_utils.rewards import REWARDS, annotate, annotate_run, outside_names
from udrl_utils.rows import command_pairs
from udrl_utils.runs import RunFolder
from udrl_utils.settings import DistillationSettings, TrainingSettings, resolve
from udrl_utils.splits import assign_splits, held_out_nouns
from udrl_utils.student import Student
from udrl_utils.tables import load_intents, read_table
from udrl_utils.tasks import TASKS
from udrl_utils.teachers.replies import Request, single_messages
from udrl_utils.text import clean_intent, count_words, degenerate, repeats, stem
from udrl_utils.word_lists import WordLists

KOI = "intent\nKoi pond\ntea for two\n"


def sheet(intents: list[str]) -> bytes:
    """A spreadsheet with a column of intents."""
    content = io.BytesIO()
    pd.DataFrame({"intent": intents}).to_excel(content, index=False)
    return content.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("QUERIES.CSV", KOI.encode()),  # github.com/huggingface/datasets/pull/5872
        ("a.csv", KOI.encode("utf-8-sig")),  # github.com/UKGovernmentBEIS/inspect_ai/issues/5353
        ("a.csv", KOI.encode("utf-16")),  # github.com/HKUDS/Vibe-Trading/pull/862
        ("a.csv", KOI.replace("\n", "\r\n").encode("utf-16")),  # github.com/Unstructured-IO/unstructured/issues/4443
        (
            "a.csv",
            b"id;intent\n1;Koi pond\n2;tea for two\n",
        ),  # github.com/jku-vds-lab/projection-space-explorer/issues/246
        ("a.csv", b"id\tintent\n1\tKoi pond\n2\ttea for two\n"),  # github.com/Clever/csvlint/issues/21
        ("a.csv", b"sep=;\r\nid;intent\r\n1;Koi pond\r\n2;tea for two\r\n"),  # Excel
        ("a.csv", b"intent\rKoi pond\rtea for two\r"),
        ("a.json", b'{"intent": "Koi pond"}\n{"intent": "tea for two"}\n'),
        ("a.csv.gz", gzip.compress(KOI.encode())),
        ("a.json", b'["Koi pond", "tea for two"]'),
        ("a.json", b'[{"intent": "Koi pond"}, {"intent": null}, {"intent": "tea for two"}]'),
        ("a.json", b'{"intent": ["Koi pond", "tea for two"]}'),
        (
            "a.jsonl",
            b'\xef\xbb\xbf{"intent": "Koi pond"}\n{"intent": "tea for two"}\n',
        ),  # huggingface/datasets/issues/8241
        ("a.jsonl", b'{"intent": "Koi pond", "x": [1]}\nnull\n{"intent": "tea for two"}\n'),  # .../datasets/issues/7059
        ("a.jsonl", b'{"intent": "Koi pond"}\n{"other": 1}\n{"intent": "tea for two"}'),  # .../datasets/issues/7169
        ("a.JSONL.GZ", gzip.compress(b'"Koi pond"\n"tea for two"\n')),  # github.com/OpenRLHF/OpenRLHF/pull/1283
        ("a.XLSX", sheet(["Koi pond", "", "tea for two"])),
        ("a.txt", "\ufeffKoi pond\n\nkoi pond\n🦊🦊\nKoi pond \ntea for two".encode()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_is_read_as_it_comes(smoke: dict, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    settings = resolve(DistillationSettings, smoke | {"intents": str(tmp_path / name), "n_intents": 0})
    assert load_intents(settings) == ["Koi pond", "tea for two"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", b"Intents,x\nkoi,1\n", "has no column 'intent'; it has Intents, x; the nearest is 'Intents'"),
        ("a.csv", "intent\nkoi\ncafé\n".encode("latin-1"), "line 3 is not UTF-8: save the file as UTF-8"),
        ("a.jsonl", b'{"intent": "koi"}\n{"intent": "te', "row 2 is not JSON"),  # huggingface/datasets/issues/6460
        ("a.jsonl", b'{"intent": "koi"}\n[1, 2]\n', "row 2 is no object with intent"),
        ("a.json", b'[{"intent": "koi"}, {"intent": {"text": "tea"}}]', "row 2 has no text in column 'intent'"),
        ("a.csv", b"intent,n\nkoi,1\nred, blue car,2\n", "row 2 has 3 fields, and the header 2: a text that holds ','"),
        ("a.csv", b"intent,n\nred, blue car,2\nkoi, pond,1\n", "row 1 has 3 fields, and the header 2"),
        ("a.csv", b'intent\n"koi pond\ntea\n', "line 3: unexpected end of data"),
        ("a.csv", b"intent,intent\nkoi,tea\n", "two columns have the same name: intent, intent"),
        ("a.csv", "intent\nkoi\n".encode("utf-16-le"), "line 1 has a zero byte: save the file as UTF-8"),
        ("a.tsv", b"intent\tn\nkoi\t1\tpond\n", "row 1 has 3 fields, and the header 2"),
        ("a.docx", b"PK", "a file should end in txt, csv, tsv, json, jsonl, parquet or xlsx, also with .gz"),
        ("b.csv", KOI.encode(), "there is no such file; did you mean"),
        ("a.parquet", b"no parquet", "cannot read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_cannot_be_read_is_told_with_its_reason(tmp_path: Path, name, content, told) -> None:
    (tmp_path / name.replace("b.csv", "bb.csv")).write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        read_table(str(tmp_path / name), ["intent"])
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_texts_with_commas_in_a_single_column_are_whole(tmp_path: Path) -> None:
    """Read as an index otherwise: the first field of a longer row."""
    (tmp_path / "a.csv").write_text('intent\nred, blue car\n"tea, ""hot"""\nkoi\n')
    assert read_table(str(tmp_path / "a.csv"), ["intent"]).intent.tolist() == ["red, blue car", 'tea, "hot"', "koi"]


def test_a_long_field_is_read_and_a_short_file_does_not_shorten_those_of_others(tmp_path: Path) -> None:
    """The csv module has one limit for the whole process."""
    (tmp_path / "long.csv").write_text("intent\n" + "koi " * 50_000 + "\n")
    (tmp_path / "short.csv").write_text("intent\nkoi\n")
    for name in ("long.csv", "short.csv"):
        read_table(str(tmp_path / name), ["intent"])
    assert len(next(csv.reader(["tea " * 50_000]))[0]) == 200_000


def test_a_null_drops_one_prompt_and_not_those_beside_it(smoke: dict, tmp_path: Path) -> None:
    rows = [{"task": "text_to_image", "intent": "Koi", "prompt": p} for p in ("a quiet koi pond", None, "koi at dawn")]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = resolve(DistillationSettings, smoke | {"pairs": str(tmp_path / "a.jsonl")})
    assert list(given_pairs(settings).items()) == [
        (Request("text_to_image", "Koi", 3), ["a quiet koi pond", "", "koi at dawn"])
    ]


@pytest.mark.parametrize(
    "text",
    [
        'poster that says "Grand Opening"',
        "iPhone 15 Pro Max",
        "NO people beach!",
        "می‌خواهم",
        "👩‍🚀 on Mars",
        "½ cup of tea",
    ],
)
def test_an_intent_is_kept_as_it_was_typed(text: str) -> None:
    """ZWNJ and ZWJ are letters of Persian and of emoji: github.com/diegosouzapw/OmniRoute/issues/12186."""
    assert clean_intent(f"\ufeff {text}\x07\u202f\n") == text


@pytest.mark.parametrize(
    ("intent", "prompt", "share"),
    [
        ('poster that says "Grand Opening"', 'bold poster with the words "GRAND OPENING"', 1),
        ('poster that says "Grand Opening"', "bold opening poster", 0),
        ("iPhone 15 Pro Max case", "clear case for an iphone 15 pro max", 1),
        ("iPhone 15 Pro Max case", "clear case for an iphone protle", 1 / 4),
        ("beach, no people", "an empty beach without any people, sunset", 1),
        ("beach, no people", "people at a beach", 0),
        ("gluten-free cake for 12", "cake for 12 without gluten", 1),
        ("trip to Lisbon with O'Brien", "lisbon in spring", 1 / 2),
        ("Birthday Card For Mom", "a card", 1),
        ("Koi pond at dawn", "anything", 1),
    ],
)
def test_kept_is_the_share_of_what_a_prompt_must_keep(intent: str, prompt: str, share: float) -> None:
    table = annotate(pd.DataFrame({"intent": [intent], "prompt": [prompt]}), ["kept"], lambda texts: None)
    assert table.kept.tolist() == [pytest.approx(share)]


HARMLESS = (
    'logo with the text "SALE", bold', "{red|blue} car on a road", "okay hand gesture sticker", "(koi:1.2), pond",
    "Here is where we met, anniversary card", "I can't believe it birthday card", "i'm sorry card with a sad puppy",
    "sure thing logo in neon", "of course I still love you poster", "mug that says [your name here]", "koi <3 sticker",
    "As an AI robot, a kind teacher", "let me know if you can come, party card", '"eat", "sleep" and "code" posters',
    "#1 dad mug", "I won't grow up poster", "می‌خواهم یک کارت تولد", "family 👩‍👩‍👧 at a beach", "10\u202fkm run poster",
    "sorry I can't make it card", "<lora:koi:0.8> koi pond at dawn", "a * b * c math poster", "a dog named {name}",
)  # fmt: skip
HARMFUL = (
    ("I can't help you with that request", "refusal"), ("Sorry, but I cannot create this image", "refusal"),
    ("As an AI language model, I have no eyes", "refusal"), ("I won't be able to assist with that", "refusal"),
    ("Sure, here are the prompts", "chatter"), ("Here are 5 search queries for a koi pond", "chatter"),
    ("Certainly! A koi pond at dawn", "chatter"), ("**Koi pond** at dawn", "markup"), ("<p>koi at dawn", "markup"),
    ('{"prompt": "a koi pond at dawn"}', "markup"), ("a koi [INST] pond", "special_token"),
    ("koi \ufffd pond", "control_characters"),
)  # fmt: skip


@pytest.mark.parametrize(("prompt", "reason"), [*((text, "") for text in HARMLESS), *HARMFUL])
def test_what_people_write_passes_and_what_models_say_does_not(smoke: dict, prompt: str, reason: str) -> None:
    """Broad prefixes drop good text: github.com/promptfoo/promptfoo/pull/9793."""
    intent = "کارت تولد" if "می" in prompt else "something else"
    pairs = pd.DataFrame({"intent": [intent], "prompt": [prompt]})
    assert reject_reasons(pairs, resolve(DistillationSettings, smoke)).tolist() == [reason]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("你好，世界", 4),  # github.com/michael-lynch/reading-time/issues/35
        ("これは日本語のテストです", 10),  # github.com/federicoiosue/Omni-Notes/issues/631: テスト is one word
        ("a red 橘猫 poster", 5),
        ("हिंदी में जन्मदिन कार्ड", 4),
        ("بطاقة عيد ميلاد", 3),
        ("브레스 오브 더 와일드", 4),
        ("a tea-house, 12.5 m wide", 5),
    ],
)
def test_words_are_counted_in_any_script(text: str, count: int) -> None:
    codec = CommandCodec(2, 60, {"text_to_image": {}})
    assert count_words(text) == count
    told = codec.count_down(text, 1)
    assert told.startswith(f"<|length:{count}|>") and told.count("<|length:") == count
    assert codec.count_down(text, count).split("|>", 1)[1].strip() == text


@pytest.mark.parametrize(
    ("prompt", "intent", "bad"),
    [
        ("meipialialial", "koi pond", True),  # github.com/huggingface/transformers/issues/36848
        ("koi pond thet thet thet", "koi pond", True),
        ("I'm not going to, I'm not going to, I'm not going to", "koi", True),  # .../transformers/issues/2322
        ("koi \ufffd\ufffd pond", "koi pond", True),
        ("我的ミッケージ koi", "koi pond", True),  # github.com/ConnorJL/GPT2/issues/5
        ("...", "koi pond", True),
        ("ho ho ho santa mug", "ho ho ho mug", False),
        ("橘猫 in a box", "橘猫", False),
        ("a banana in mississippi, very very big", "fruit", False),
    ],
)
def test_broken_prompts_are_known(prompt: str, intent: str, bad: bool) -> None:
    assert degenerate(prompt, intent) is bad


@pytest.mark.parametrize(
    ("prompt", "intent", "again"),
    [
        ("a lamp with a lamp", "lamp", True),
        ("two lamps, lamp shop", "lamp", True),
        ("a lamp by the sea", "lamp", False),
        ("a lamp for a lamp shop", "lamp near a lamp shop", False),  # as often as the intent
        ("the red of the red", "koi", False),  # short words
        ("a lamp in soft light beside a small window, soft shadows on the floor", "lamp", False),  # one in 12 words
        ("a lamp in soft light beside a small window, soft shadows on a small floor", "lamp", True),
        ("我我我我", "我", False),
    ],
)
def test_a_prompt_that_says_words_again_is_known(prompt: str, intent: str, again: bool) -> None:
    assert repeats(prompt, intent) is again


class Scripted(Engine):
    """Writes what a script holds for each attempt."""

    def __init__(self, *attempts: str, words: str = ""):
        from tokenizers import Tokenizer, models

        super().__init__(Tokenizer(models.BPE()), CommandCodec(2, 60, {"text_to_image": {}}, words=words), 64)
        self.attempts, self.read = list(attempts), []

    def _write(self, batches, how):
        text = self.attempts.pop(0) if len(self.attempts) > 1 else self.attempts[0]
        for batch in batches:
            self.read += batch.prefixes
            yield [text] * len(batch.prefixes)


@pytest.mark.parametrize(
    ("attempts", "lists", "found"),
    [
        (("koi koi koi koi pond", "a koi pond"), {}, "a koi pond"),
        (("a blue koi pond", "a red koi pond"), {"banned": ["Blue"]}, "a red koi pond"),
        (("photo of a koi pond, photos",), {"banned": ["photo"]}, "of a koi pond"),
        (("a koi pond",), {"keep": ["bamboo", "koi"]}, "a koi pond, bamboo"),
        (("a bluebird koi",), {"banned": ["blue"]}, "a bluebird koi"),
    ],
    ids=str,
)  # fmt: skip
def test_word_lists_hold_in_every_prompt(attempts, lists, found) -> None:
    """A block list that asks again: github.com/adieyal/dynamicprompts/pull/8, theroyallab/tabbyAPI/issues/145."""
    engine = Scripted(*attempts)
    assert engine.generate(["koi pond"], Command("text_to_image"), n=2, **lists) == [[found] * 2]
    assert ("bamboo" in engine.read[0]) is ("keep" in lists), "the student reads what it is to keep"


def test_a_prompt_with_a_word_that_nobody_wrote_is_drawn_again() -> None:
    # the second attempt holds a word of the intent, and an inflection
    engine = Scripted("a blue koi scottage", "a zorblat's blue ponds", words="a blue koi pond")
    assert engine.generate(["zorblat"], Command("text_to_image")) == [["a zorblat's blue ponds"]]
    stubborn = Scripted("a scottage", words="a blue koi pond")
    assert stubborn.generate(["koi"], Command("text_to_image")) == [["a scottage"]], "and given as it is in the end"
    assert len(stubborn.read) == 1 + REDRAWS
    worse = Scripted("a scottage", "koi koi koi koi", words="a blue koi pond")
    assert worse.generate(["koi"], Command("text_to_image")) == [["a scottage"]], "and nothing worse instead"


def test_a_broken_prompt_is_drawn_again_more_often() -> None:
    """A loop that comes again: github.com/huggingface/transformers/issues/36848."""
    engine = Scripted(*["koi koi koi"] * BROKEN_REDRAWS, "a koi pond")
    assert engine.generate(["koi"], Command("text_to_image")) == [["a koi pond"]]
    assert len(engine.read) == 1 + BROKEN_REDRAWS


@pytest.mark.parametrize(
    ("intent", "read"), [("🦊", "fox face"), ("🎂 🎈!", "birthday cake balloon"), ("👍🏽", "thumbs up sign")]
)
def test_emoji_alone_are_read_by_their_names_and_that_is_told(intent: str, read: str) -> None:
    engine = Scripted("a fox")
    with pytest.warns(UserWarning, match=f"has no words: it is read as '{read}'"):
        engine.generate([intent], Command("text_to_image"))
    assert read in engine.read[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.generate([f"{intent} mug"], Command("text_to_image"))
    assert intent.split()[0] in engine.read[-1]


@pytest.mark.parametrize("lists", [{"banned": "blue"}, {"keep": [""]}, {"banned": ["blue"], "keep": ["blue sky"]}])
def test_word_lists_that_cannot_be_met_are_refused(lists: dict) -> None:
    with pytest.raises(CommandError, match=r"should be a list of words|is banned, too"):
        WordLists(**{"banned": (), "keep": (), **lists})


def test_a_student_warns_where_it_never_read_a_script_and_reads_case_only_where_it_learned_it() -> None:
    engine = Scripted("a koi pond")
    with pytest.warns(UserWarning, match="CJK: this student was trained on intents in LATIN"):
        engine.generate(["橘猫"], Command("text_to_image"))
    assert engine.prefix('Sign "Open"', Command("text_to_image")).split("|>")[1].startswith('sign "open"')
    rows = pd.DataFrame({"task": "text_to_image", "intent": ["NASA logo", "橘猫 poster"], "length": [2, 3]})
    codec = CommandCodec.fit(rows, ["length"], bins=2)
    assert codec.cased and set(codec.scripts) == {"LATIN", "CJK"} and "NASA" in codec.prefix("", "NASA logo")


def test_an_intent_that_is_longer_than_those_of_training_is_told() -> None:
    rows = pd.DataFrame({"task": "text_to_image", "intent": ["koi pond", "tea for two"], "length": [2, 3]})
    engine = Scripted("a koi pond")
    engine.codec = CommandCodec.fit(rows, ["length"], bins=2)
    with pytest.warns(UserWarning, match="an intent has 60 words, and this student was trained on up to 2"):
        engine.generate(["koi " * 60], Command("text_to_image"))


FAMILY = "birthday card for mom", "Birthday cards for my mom!", "a card for mom's birthday", "mom birthday card, please"
SUBJECTS = ("otter", "heron", "gecko", "badger", "falcon", "turtle", "salmon", "beetle", "walrus", "panther")


def test_wordings_of_one_intent_are_in_one_split_and_no_plural_has_a_plural(smoke: dict, tmp_path: Path) -> None:
    """Paraphrases leak from train to test: github.com/tomhosking/hrq-vae/issues/2."""
    settings = resolve(DistillationSettings, smoke | {"pairs": "mine.csv", "test_fraction": 0.3})
    intents = [text.replace("mom", subject) for subject in SUBJECTS for text in FAMILY]
    splits, _ = assign_splits(intents, settings)
    assert len(set(splits.values())) > 1
    for subject in SUBJECTS:
        assert len({split for intent, split in splits.items() if subject in intent}) == 1, subject
    nouns = held_out_nouns([], 0.49)
    plurals = {noun for noun in nouns if noun.endswith("s") and stem(noun) != noun}
    assert plurals and nouns.isdisjoint(map(plural, plurals)), "bannerses is no word"


def test_nothing_that_people_bring_is_dropped_for_a_probe(smoke: dict) -> None:
    """Of 4,184 long prompts of real LLMs 14.5% named a noun that was held out."""
    intents = [f"old {subject}s" for subject in SUBJECTS]
    for own in ({"pairs": "mine.csv"}, {"intents": "mine.csv", "teacher": "local"}):
        settings = resolve(DistillationSettings, smoke | {"test_fraction": 0.49, **own})
        assert not assign_splits(intents, settings)[1]


def test_a_reward_that_reads_its_notebook_is_refused_before_training(smoke: dict, tmp_path: Path, monkeypatch) -> None:
    """Functions that travel as source lose their globals: github.com/verl-project/verl/issues/3150."""
    source = (
        "@reward('colour', unit='share')\ndef colour(pairs, embed):\n    return [len(COLOURS) for p in pairs.prompt]\n"
    )
    assert outside_names(source) == {"COLOURS"}
    assert outside_names("def f(pairs: pd.DataFrame, embed): return len(pairs)") == {"pd"}
    assert not outside_names(
        "@reward('a', 'b')\ndef f(p, e):\n    import re\n    d = {}\n    return [re.sub('a', 'b', t) for t in p]"
    )
    monkeypatch.setitem(REWARDS, "colour", rewards.Reward("colour", "share", lambda pairs, embed: 1, source))
    with pytest.raises(SettingsError, match="reward 'colour' uses COLOURS of its notebook"):
        rewards.save_rewards(tmp_path, ["length", "colour"])
    assert not list(tmp_path.iterdir())


# other languages, and tasks of one's own

TEXTS = {
    "zh": ("{}的生日贺卡，水彩风格", "可爱的{}海报，蓝色背景和金色星星", [f"橘猫{n}" for n in "一二三四五六七八九十"]),
    "ar": ("بطاقة {} بألوان مائية", "ملصق {} مع نجوم ذهبية وخلفية زرقاء", [f"قطة {n}" for n in "ابتثجحخدذر"]),
    "hi": ("{} का जन्मदिन कार्ड", "नीले रंग में {} का सुंदर पोस्टर", [f"बिल्ली {n}" for n in "कखगघचछजझटठ"]),
    "de": ("Geburtstagskarte mit {}", "Plakat mit {} vor blauem Himmel", [f"Katze für {n}" for n in SUBJECTS]),
}
OWN = {
    "product_description": {
        "definition": "A sentence that sells a product.",
        "instruction": "Write one sentence that describes the product.",
        "examples": [{"intent": f"mug {k}", "prompts": ["a mug", "a warm mug", "a warm blue mug"]} for k in range(3)],
    }
}


@pytest.fixture
def own_tasks(tmp_path: Path, monkeypatch) -> str:
    monkeypatch.setattr("udrl_utils.tasks.TASKS", TASKS)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(OWN))
    yield str(tmp_path / "mine.yaml")
    TASKS.pop("product_description", None)


class ScriptedTeacher:
    name = "scripted"

    def write(self, requests, journal):
        found = [next(t for t in TEXTS.values() if r.intent in t[2]) for r in requests]
        return [[text.format(r.intent) for text in texts[:2]] for r, texts in zip(requests, found, strict=True)]


def test_four_languages_and_an_own_task_go_through_all_steps(
    smoke, outputs, tmp_path, own_tasks, monkeypatch, capsys
) -> None:
    """Unspaced scripts are no single word: github.com/every-app/open-seo/pull/273."""
    monkeypatch.setattr("udrl_utils.pairs.make_teacher", lambda settings, budget: ScriptedTeacher())
    typed = [intent for *_, intents in TEXTS.values() for intent in intents]
    (tmp_path / "queries.json").write_text(json.dumps(typed, ensure_ascii=False), encoding="utf-8")
    changes = {"intents": str(tmp_path / "queries.json"), "n_intents": 0, "tasks_file": own_tasks, "test_fraction": 0.3}
    changes |= {"tasks": ["product_description"], "teacher": "local", "teacher_model": "none", "prompts_per_intent": 2}
    settings = resolve(DistillationSettings, smoke | changes)
    run = RunFolder("a").start("01_pairs", settings)
    counts, _ = distil(settings, run)
    pairs = read_pairs(run)
    assert counts["kept"] >= 60 and set(pairs.intent) <= set(typed) and dropped_prompts(run).empty
    assert set(pairs.task) == {"product_description"} and set(pairs.modality) == {"text"}
    run.finish("01_pairs", settings)
    monkeypatch.setattr("udrl_utils.rewards.Encoder", FakeEncoder)
    scoring = resolve(rewards.AnnotationSettings, smoke)
    made = annotate_run(scoring, run)
    run.finish("02_annotated", scoring)
    assert "encoder='minilm' reads English, and the intents are in" in capsys.readouterr().out
    rewards.load_rewards(run, "04_analysis")
    assert "relevance and diversity mean little there" in capsys.readouterr().out, "beside the results, too"
    assert made.length.min() >= 3 and made.relevance.notna().all()
    training = resolve(TrainingSettings, smoke | {"horizon": 1, "word_swaps": 0.5})
    codec = CommandCodec.fit(made, ["length", "relevance", "diversity"], bins=2)
    assert {"LATIN", "CJK", "ARABIC", "DEVANAGARI"} == set(codec.scripts) and codec.cased
    tokenizer = train_tokenizer([*made.intent, *made.prompt], 700, codec.tokens())
    rows = command_pairs(made, codec, training, tokenizer)
    student = Student(new_student(training, tokenizer), tokenizer, codec)
    for prompt, row in zip(student.texts(tokenizer(rows["completion"][:]).input_ids), rows["completion"], strict=True):
        assert prompt == "".join(re.sub(r"<[|]\w+:\d+[|]>", "", row)).strip(), "the tokenizer holds every script"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        student.generate(["橘猫一", "قطة ا", "Katze"], Command("product_description", length=4))


class FakeEncoder:
    """Unit vectors from a hash of the text."""

    def __init__(self, name: str):
        pass

    def __call__(self, texts):
        vectors = np.array([np.random.default_rng(abs(hash(text))).normal(size=8) for text in texts])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def forget(self) -> None:
        pass


def test_an_own_task_is_asked_for_like_the_shipped_ones(smoke: dict, own_tasks: str) -> None:
    settings = resolve(DistillationSettings, smoke | {"tasks_file": own_tasks, "tasks": ["product_description"]})
    chat = single_messages(Request(settings.tasks[0], "tea pot", 3), 1)
    assert "language of the intent" in single_messages(Request("related_search", "橘猫", 3), 1)[0]["content"]
    assert "describes the product" in chat[0]["content"] and "language" not in chat[0]["content"]
    assert chat[-1]["content"] == "tea pot" and len(chat) >= 6
    with pytest.raises(SettingsError, match=r"tasks=.* should name a task of tasks_file=.*product_description"):
        resolve(DistillationSettings, smoke | {"tasks_file": own_tasks})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"definition": ""}, "task product_description has no definition; it needs definition, instruction, examples"),
        ({"instructions": "x"}, "has an unknown field 'instructions'"),
        ({"examples": [{"intent": "mug"}]}, "each of its examples should have an intent and prompts"),
        ({"examples": OWN["product_description"]["examples"][:1]}, "at least 3 examples, each with 3 prompts"),
    ],
    ids=str,
)
def test_a_task_that_lacks_something_is_one_line(smoke: dict, tmp_path: Path, change: dict, told: str) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"product_description": OWN["product_description"] | change}))
    with pytest.raises(SettingsError) as caught:
        resolve(DistillationSettings, smoke | {"tasks_file": str(tmp_path / "mine.yaml")})
    assert told in str(caught.value) and "mine.yaml" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "last", "told"),
    [
        ("rewards=[lenght]", 4, "rewards='lenght' is unknown; did you mean length?"),
        ("baselines=[gpt4]", 4, "baselines='gpt4' should be local:<model> or openai:"),
        ("ablations=[no guidence]", 4, "ablations: 'no guidence' is unknown"),
        ("outside_intents=missing.csv", 4, "cannot read 'missing.csv': there is no such file"),
        ("catalog=missing.csv", 6, "cannot read 'missing.csv': there is no such file"),
        ("judgements=missing.csv", 6, "cannot read 'missing.csv': there is no such file"),
        ("search_command=[commas 1]", 6, "search_command='commas 1' should name one of rewards"),
        ("unseen_lengths={poem: [3]}", 3, "unseen_lengths='poem' should be 'text_to_image'"),
        ("base=./nowhere", 3, "base='./nowhere' is no file or folder"),
        ("encoder=/no/where", 2, "encoder='/no/where' is no file or folder"),
    ],
)
def test_settings_of_later_stages_are_checked_before_any_work(outputs: Path, change: str, last: int, told: str) -> None:
    """A wrong name is told at once: github.com/argilla-io/distilabel/issues/547, nteract/papermill/pull/869."""
    from typer.testing import CliRunner

    done = CliRunner().invoke(cli.app, ["run", "--preset", "smoke", "--to", str(last), "--set", change])
    assert done.exit_code == 2 and told in done.stderr and done.stderr.count("\n") == 1
    assert not outputs.exists()
