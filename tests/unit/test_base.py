"""The shipped models: what the base reads and never reads, how it is made, how a student starts from it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import yaml
from transformers import AutoTokenizer
from typer.testing import CliRunner

from udrl_utils import base, cli, gpt2
from udrl_utils import student as students
from udrl_utils.base import HELD_OUT, corpus, held_out, held_out_words, names_held_out, one_pass, read_glosses
from udrl_utils.cli import app
from udrl_utils.commands import END_OF_PREFIX, Command, CommandCodec
from udrl_utils.errors import RunError, SettingsError
from udrl_utils.gpt2 import END, pretrained_student, widen
from udrl_utils.panel import Prober
from udrl_utils.runs import RunFolder, write_json
from udrl_utils.settings import ROOT, AnnotationSettings, DistillationSettings, ProbeSettings, TrainingSettings, resolve
from udrl_utils.splits import assign_splits, split_share
from udrl_utils.student import Student
from udrl_utils.tasks import TASKS
from udrl_utils.text import words

PRESETS = ROOT / "notebooks" / "presets"
LAPTOP = yaml.safe_load((PRESETS / "laptop.yaml").read_text())
CODEC = CommandCodec(10, 60, {task: {"relevance": [i / 10 for i in range(11)]} for task in TASKS})
SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": 600}
SHIPPED = {"base": gpt2.BASE, "ready": students.READY}


def settings_of(**changes: object) -> tuple[DistillationSettings, TrainingSettings]:
    values = LAPTOP | changes
    return resolve(DistillationSettings, dict(values)), resolve(TrainingSettings, dict(values))


def recorded(folder: Path, rows: list[tuple[str, str, str]]) -> Path:
    """A recording of a few rows."""
    pd.DataFrame(rows, columns=["task", "intent", "prompt"]).to_parquet(folder / "prompts.parquet")
    return folder


def test_the_base_reads_no_test_intent_no_held_out_noun_and_no_unseen_length(recording: Path) -> None:
    distillation, training = settings_of()
    everything, pairs = pd.read_parquet(recording / "prompts.parquet"), corpus(*settings_of(), recording)
    intents = list(dict.fromkeys(everything.intent))
    splits, nouns = assign_splits(intents, distillation)
    assert nouns and nouns <= held_out_words()
    tested = {intent for intent, split in splits.items() if split == "test"}
    assert tested and tested.isdisjoint(pairs.intent) and all(split_share(i) >= HELD_OUT for i in pairs.intent)
    assert nouns & {word for intent in tested for word in words(intent)}
    last = everything[(everything.task == max(TASKS)) & everything.prompt.str.split().str.len().isin([17, 29])]
    assert len(last) and {17, 29}.isdisjoint(pairs[pairs.task == max(TASKS)].length)
    assert {17, 29} & set(pairs[pairs.task != max(TASKS)].length)
    for number in range(3):
        for row in one_pass(pairs, number, training):
            intent = row["prompt"].removesuffix(END_OF_PREFIX)
            assert not held_out(intent) and "<|" not in f"{intent}{row['completion']}"
            assert held_out_words().isdisjoint(words(f"{intent} {row['completion']}"))


def test_a_held_out_noun_is_found_in_compounds_and_with_an_s() -> None:
    noun = min(held_out_words())
    assert names_held_out(f"the {noun}'s nest") and names_held_out(f"a {noun.upper()}-like hat")
    assert not names_held_out("a plain hat")


@pytest.mark.parametrize("token", [END, END_OF_PREFIX, "<|length:3|>", "<|im_end|>"])
def test_a_special_token_in_a_prompt_or_intent_never_becomes_one(token: str, tmp_path: Path) -> None:
    words_ = [f"kettle{k}" for k in range(200)]
    rows = [("query_rewrite", word, f"{word} for tea {tail}") for word in words_ for tail in ("shops", token)]
    pairs = corpus(*settings_of(), recorded(tmp_path, [*rows, ("query_rewrite", f"hot {token} tea", "hot tea shops")]))
    assert len(pairs) > 100 and not pairs.prompt.str.contains("<|", regex=False).any()
    texts = [f"{row['prompt']}{row['completion']}" for row in one_pass(pairs, 0, settings_of()[1])]
    assert all(text.count("<|") == 1 == text.count(END_OF_PREFIX) for text in texts)


def test_every_pass_swaps_other_words_and_the_same_pass_the_same(recording: Path) -> None:
    pairs, (_, settings) = corpus(*settings_of(), recording), settings_of(word_swaps=1.0)
    first, second = (one_pass(pairs, number, settings) for number in (0, 1))
    assert first == one_pass(pairs, 0, settings)
    assert sum(a != b for a, b in zip(first, second, strict=True)) > 0.8 * len(pairs)
    plain = one_pass(pairs, 0, settings.model_copy(update={"word_swaps": 0}))
    assert [row["completion"] for row in plain] == pairs.prompt.tolist()


def test_a_dictionary_is_read_without_held_out_nouns(tmp_path: Path) -> None:
    noun = min(held_out_words())
    koi, old = [word for word in ("koi", "carp", "heron", "pond", "meadow", "kettle") if not held_out(word)][:2]
    lines = [
        "  1 This software and database is being provided to you",
        f'00001 04 n 01 {koi} 0 001 @ 00002 n 0000 | kept in ponds; "she fed them all"; "two of them"',
        f"00002 04 n 01 {noun} 0 000 | something held out",
        f"00003 04 n 01 hat 0 000 | a hat for a {noun}",
        f"00004 00 a 01 {old}(p) 0 000 | having lived long",
    ]
    (tmp_path / "data.noun").write_text("\n".join(lines))
    rows = [(row["prompt"].removesuffix(END_OF_PREFIX), row["completion"]) for row in read_glosses(tmp_path)]
    assert rows == [(koi, "kept in ponds"), (old, "having lived long")]


def test_a_model_that_cannot_take_more_tokens_is_one_line() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, max_position_embeddings=128, **shape))
    widen(model, 128)
    with pytest.raises(SettingsError, match="this model takes at most 128 tokens, and 192 are needed") as caught:
        widen(model, 192)
    assert "\n" not in str(caught.value)


def test_a_base_is_made_by_one_command(small_base: Path) -> None:
    card = (small_base / "README.md").read_text()
    for part in ("that templates wrote", "- Passes: 1, ", "nats a token", " --passes 1`", "2 layers x 32"):
        assert part in card, part
    special = [t for t in AutoTokenizer.from_pretrained(small_base).get_vocab() if t.startswith("<|")]
    assert sorted(special) == [END, END_OF_PREFIX]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("base", "--passes", "0"), "passes=0 should be at least 1"),
        (("base", "--preset", "huge"), "preset='huge' is neither"),
        (("base", "--glosses", "nowhere"), "glosses='nowhere' holds no data.noun"),
        (("ready", "--preset", "huge"), "preset='huge' is neither"),
    ],
)
def test_a_bad_option_costs_one_line(arguments: tuple[str, ...], told: str, outputs: Path) -> None:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 2 and told in done.stderr and done.stderr.count("\n") == 1 and not outputs.exists()


def test_the_ready_student_is_that_of_notebooks_1_to_3(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, shipped = {}, []
    monkeypatch.setattr(cli, "execute", lambda stage, settings, *_: made.update({stage: settings}))
    monkeypatch.setattr("udrl_utils.base.ship_student", lambda run, *how: shipped.append((run.path, *how)))
    done = CliRunner().invoke(app, ["ready", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert list(made) == ["01_pairs", "02_annotated", "03_student"]
    assert made["01_pairs"].shard_size == 5000
    assert made["01_pairs"].n_intents == 0 and made["03_student"].base == "recorded"
    assert shipped == [(outputs / "ready", tmp_path, "udrl ready --preset ready")]


def test_nothing_recorded_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no prompts are recorded in"):
        corpus(*settings_of(), tmp_path)
    with pytest.raises(SettingsError, match="holds too few prompts"):
        corpus(*settings_of(), recorded(tmp_path, [("query_rewrite", "tea", "green tea shops")]))


def test_new_tokens_begin_spread_like_those_that_the_base_knows(small_base: Path) -> None:
    model, tokenizer = pretrained_student(small_base, CODEC)
    assert str(model.dtype) == "torch.float32" and set(CODEC.tokens()) <= tokenizer.get_vocab().keys()
    assert len(tokenizer) == model.get_input_embeddings().num_embeddings
    known = model.get_input_embeddings().weight[: -len(CODEC.tokens()) + 1]
    new = model.get_input_embeddings().weight[-len(CODEC.tokens()) + 1 :]
    assert 0.8 < (new.std() / known.std()).item() < 1.25
    assert len(new.unique(dim=0)) == len(new)


def test_a_base_that_does_not_fit_is_one_line(small_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"base='no/where' is neither recorded, a Hub id nor a folder") as caught:
        pretrained_student("no/where", CODEC)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(gpt2, "BASE", Path("not/made"))
    with pytest.raises(SettingsError, match="base='recorded': the package has no base yet; make it with: udrl base"):
        pretrained_student("recorded", CODEC)


def test_a_ready_student_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(students, "READY", Path("not/made"))
    with pytest.raises(RunError, match="no student in not/made: make it with: udrl ready"):
        Student.load("ready")


def test_a_run_s_student_is_shipped_in_half_precision_and_asked_without_a_run(
    small_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, ready = RunFolder(tmp_path / "run"), tmp_path / "ready"
    codec = CommandCodec(10, 60, CODEC.edges, {"query_rewrite": {"length": 8}})
    (run / "03_student").mkdir(parents=True)
    Student(*pretrained_student(small_base, codec), codec).save(run / "03_student")
    kinds = {"02_annotated": AnnotationSettings, "03_student": TrainingSettings}
    made = {s: {"settings": resolve(k, dict(LAPTOP)).model_dump(mode="json"), "seconds": 90} for s, k in kinds.items()}
    write_json(run / "run.json", {"stages": made})
    intents = {"split": ["train", "test"], "intent": ["koi", "owl"]}
    pairs = pd.DataFrame({**intents, "prompt": "koi pond", "task": "query_rewrite", "teacher": "t"})
    monkeypatch.setattr(base, "read_annotated", lambda run: pairs)
    monkeypatch.setattr(students, "READY", ready)
    base.ship_student(run, ready, "udrl ready")
    student = Student.load("ready")
    assert str(student.model.dtype) == "torch.float32"
    assert student.best_command("query_rewrite") == Command("query_rewrite", length=8)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (run / "03_student", ready)]
    assert sizes[1] < 0.6 * sizes[0]
    card = (ready / "README.md").read_text()
    assert all(x in card for x in ("1 pairs of 1 intents, written by t", "Passes: 8\n", "1.5 minutes", "`udrl ready`"))
    mine = RunFolder(tmp_path / "mine")
    prober = Prober(mine, resolve(ProbeSettings, LAPTOP | {"student": "ready"}))
    samples, _ = prober.ask("koi pond", Command("query_rewrite", length=6), 2)
    assert len(samples) == 2 and set(prober.intents) == set(TASKS) and prober.intents["query_rewrite"] == ["owl"]
    with pytest.raises(RunError, match="run='mine' has no student yet"):
        prober.other(str(mine.name))


@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_shipped_is_small_and_says_how_it_was_made(name: str) -> None:
    folder = SHIPPED[name]
    if not folder.exists():
        pytest.skip(f"the package has no {name} yet: udrl {name}")
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 16e6
    assert "Made by: `udrl" in (folder / "README.md").read_text()


def test_the_shipped_base_copies_what_it_is_asked_for() -> None:
    if not gpt2.BASE.exists():
        pytest.skip("the package has no base yet: udrl base")
    torch.manual_seed(0)
    model, tokenizer = pretrained_student("recorded", CODEC)
    kept = []
    intents = {"glass octopus": "octopus", "wooden tractor in a museum": "tractor", "koi pond": "koi"}
    for intent, noun in intents.items():
        asked = tokenizer([f"{intent}{END_OF_PREFIX}"] * 8, return_tensors="pt", add_special_tokens=False)
        written = model.generate(**asked, max_new_tokens=40, do_sample=True, temperature=0.8, min_p=0.05)
        prompts = tokenizer.batch_decode(written[:, asked.input_ids.shape[1] :], skip_special_tokens=True)
        kept += [noun in words(prompt) for prompt in prompts]
    assert sum(kept) / len(kept) >= 0.5, kept


@pytest.mark.parametrize(("prompts", "passes"), [(100, 48), (20_000, 31), (1_000_000, 4)])
def test_a_small_recording_is_read_more_often(prompts: int, passes: int) -> None:
    def tokenizer(texts: list[str], **_: object) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[text.split() for text in texts])

    assert base.enough_passes(["a red fox in the snow at dawn"] * prompts, tokenizer) == passes
