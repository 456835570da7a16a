"""Engines: an exported student writes what the trained one would, and says which options it does not have."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from udrl_utils.commands import Command, CommandCodec, CommandError
from udrl_utils.decoding import Sampling
from udrl_utils.deploy import latency
from udrl_utils.deploy.export import PRECISIONS, DeployedStudent, export, load_engine
from udrl_utils.errors import RunError, SettingsError
from udrl_utils.gpt2 import new_student, train_tokenizer
from udrl_utils.runs import RunFolder, write_json
from udrl_utils.settings import ROOT, DeploymentSettings, ProbeSettings, TrainingSettings, resolve
from udrl_utils.student import Student

TASK = "text_to_image"
SAMPLING = {"temperature": 1.1, "min_p": 0.02, "guidance": 3.0, "candidates": 2}
COMMAND = Command(TASK, length=6, relevance=0.9)
TEXTS = ["koi pond at dusk, oil painting", "tea house in the rain", "an owl, linocut, soft light"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that has learnt a few prompts by heart, saved."""
    settings = resolve(TrainingSettings, yaml.safe_load((ROOT / "notebooks" / "presets" / "smoke.yaml").read_text()))
    codec = CommandCodec(10, 20, {TASK: {"relevance": [k / 10 for k in range(11)]}}, sampling=SAMPLING)
    tokenizer = train_tokenizer(TEXTS * 3, 400, codec.tokens())
    torch.manual_seed(0)
    model = new_student(settings, tokenizer)
    student = Student(model, tokenizer, codec)
    rows = [f"{student.prefix(text.split()[0], COMMAND)} {text}{tokenizer.eos_token}" for text in TEXTS]
    batch = tokenizer(rows, padding=True, padding_side="right", return_tensors="pt")
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("run") / "03_student"
    student.save(folder)
    return folder


@pytest.fixture(scope="module")
def exported(trained: Path) -> dict[str, Path]:
    home = trained.parent / "07_deployment"
    return {
        precision: export(trained, home / precision, precision, top_k=50, top_p=0.9)
        for precision in ("float32", "int8")
    }


def test_an_exported_student_writes_what_the_trained_one_does(trained: Path, exported: dict[str, Path]) -> None:
    intents = [text.split()[0] for text in TEXTS]
    expected = Student.load(trained).generate(intents, COMMAND, temperature=0.01)
    assert [texts[0] for texts in expected] == TEXTS
    for folder in exported.values():
        assert DeployedStudent.load(folder).generate(intents, COMMAND, temperature=0.01) == expected


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_student_in_half_precision_is_exported_too(precision: str, trained: Path, tmp_path: Path) -> None:
    student, intents = Student.load(trained), [text.split()[0] for text in TEXTS]
    student.model.to(torch.float16)
    (tmp_path / "half").mkdir()
    student.save(tmp_path / "half")
    engine = DeployedStudent.load(export(tmp_path / "half", tmp_path / precision, precision))
    assert [texts[0] for texts in engine.generate(intents, COMMAND, temperature=0.01)] == TEXTS


def test_one_seed_gives_the_same_prompts_and_another_gives_others(trained: Path, tmp_path: Path) -> None:
    engine = DeployedStudent.load(export(trained, tmp_path / "float32", "float32"))
    hot = {"n": 8, "temperature": 2.0}
    first = engine.generate(["koi"], COMMAND, seed=1, **hot)
    assert first == engine.generate(["koi"], COMMAND, seed=1, **hot)
    assert first != engine.generate(["koi"], COMMAND, seed=2, **hot)
    assert first == DeployedStudent.load(tmp_path / "float32").generate(["koi"], COMMAND, seed=1, **hot)
    assert len(set(first[0])) > 4, "the prompts of a set differ"


def test_an_exported_student_tells_the_same_levels(trained: Path, exported: dict[str, Path]) -> None:
    prompts = [*TEXTS, "koi"]  # of several lengths, so that the batch is padded
    requests = [(text.split()[0], TASK) for text in prompts]
    for precision, folder in exported.items():
        told = []
        for engine in (Student.load(trained), DeployedStudent.load(folder)):
            engine.codec = replace(engine.codec, reads=True)
            told.append(engine.estimate(requests, prompts, ["relevance"])["relevance"])
        assert told[0].sum(1) == pytest.approx(1) and len({*told[0].round(6)[:, 0]}) == len(prompts)
        assert told[1] == pytest.approx(told[0], abs=1e-4 if precision == "float32" else 0.05)


def test_sampling_is_saved_with_the_student_and_used_by_default(trained: Path, exported: dict[str, Path]) -> None:
    student = Student.load(trained)
    assert vars(student.sampling) == {"seed": 0, **SAMPLING}
    assert student.generate(["koi"], COMMAND, n=8) == student.generate(["koi"], COMMAND, n=8, **SAMPLING)
    assert DeployedStudent.load(exported["int8"]).sampling.temperature == 1.1


def test_the_shipped_student_brings_its_sampling() -> None:
    student = Student.load("ready")
    assert student.codec.sampling and vars(student.sampling) == vars(Sampling()) | student.codec.sampling


@pytest.mark.parametrize("engine", ["trained", "float32", "int8"])
def test_what_is_streamed_is_what_is_written(engine: str, trained: Path, exported: dict[str, Path]) -> None:
    writer = Student.load(trained) if engine == "trained" else DeployedStudent.load(exported[engine])
    pieces = list(writer.stream("tea", COMMAND, temperature=0.01))
    assert len(pieces) > 3
    assert "".join(pieces).split() == TEXTS[1].split()


def test_a_stream_leaves_no_trace_in_the_callers_mode(trained: Path) -> None:
    pieces = Student.load(trained).stream("tea", COMMAND)
    next(pieces)
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"guidance": 2.0}, "guidance=2.0: not an option of CTranslate2 int8, .* set guidance=1.0"),
        ({"min_p": 0.1, "guidance": 3.0}, "min_p=0.1, guidance=3.0: not .* set min_p=0.0, guidance=1.0"),
        ({"beam": 4}, "beam=4: not an option of CTranslate2 int8, which has seed, temperature, candidates$"),
    ],
)
def test_an_option_that_an_engine_does_not_have_is_one_line(
    changes: dict, line: str, exported: dict[str, Path]
) -> None:
    engine = DeployedStudent.load(exported["int8"])
    with pytest.raises(CommandError, match=line):
        engine.generate(["koi"], COMMAND, **changes)
    assert engine.generate(["koi"], COMMAND, min_p=0, guidance=1) == engine.generate(["koi"], COMMAND)


def test_unknown_ways_to_sample_are_one_line(trained: Path) -> None:
    with pytest.raises(CommandError, match="beam=4: not an option of PyTorch, which has seed, temperature, min_p, gui"):
        Student.load(trained).generate(["koi"], COMMAND, beam=4)


def test_commands_are_checked_as_of_the_trained_student(exported: dict[str, Path]) -> None:
    engine = DeployedStudent.load(exported["int8"])
    with pytest.raises(CommandError, match="is empty"):
        engine.generate([" "], COMMAND)
    with pytest.raises(CommandError, match="beyond what was trained"):
        engine.generate(["koi"], Command(TASK, length=55), strict=True)
    with pytest.warns(UserWarning, match="asked for"):
        engine.generate(["koi"], Command(TASK, length=55))


def test_long_and_odd_intents_are_answered(exported: dict[str, Path]) -> None:
    engine = DeployedStudent.load(exported["int8"])
    odd = ["word " * 5000, "<|end|><|length:3|>", "\u202eevil\u0000", "🦎" * 300, "<script>"]
    assert all(len(texts) == 1 for texts in engine.generate(odd, COMMAND))


def test_8_bits_weigh_less_and_load_without_pytorch(exported: dict[str, Path]) -> None:
    engines = {name: DeployedStudent.load(folder) for name, folder in exported.items()}
    assert latency.weights_mb(engines["int8"]) < 0.4 * latency.weights_mb(engines["float32"])
    cold = latency.cold_start(engines["int8"])
    assert 0 < cold["load_s"] < cold["first_word_s"] <= cold["first_prompt_s"]
    assert cold["memory_mb"] < 200, "PyTorch alone would be more"


def test_the_engine_is_the_one_that_is_asked_for(trained: Path, exported: dict[str, Path]) -> None:
    run, made = RunFolder(trained.parent), {"precisions": ["float32", "int8"], "student": ""}
    write_json(run / "run.json", {"stages": {"07_deployment": {"settings": made}}})
    assert isinstance(load_engine(run, "pytorch"), Student), "whatever was exported"
    assert load_engine(run, "float32").folder == exported["float32"]
    assert load_engine(run, "int8").folder == exported["int8"]
    with pytest.raises(RunError, match=r"engine='bfloat16' was not exported in run=.*: run notebooks/07_deployment"):
        load_engine(run, "bfloat16")
    with pytest.raises(RunError, match="engine='int8' was not exported"):  # the export is of the run's own student
        load_engine(run, "int8", "ready")
    write_json(run / "run.json", {"stages": {"03_student": {}}})  # trained again since it was exported
    with pytest.raises(RunError, match="engine='int8' was not exported"):
        load_engine(run, "int8")


def test_a_missing_student_or_export_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="run notebooks/03_udrl_training"):
        export(tmp_path, tmp_path / "int8", "int8")
    with pytest.raises(RunError, match="run notebooks/07_deployment"):
        DeployedStudent.load(tmp_path)


def test_without_the_extra_it_is_one_line(monkeypatch: pytest.MonkeyPatch, exported: dict[str, Path]) -> None:
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(SettingsError, match=r"pip install 'udrl_utils\[deploy\]'"):
        DeployedStudent.load(exported["int8"])


def test_a_shape_has_the_parameters_of_the_model_that_it_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    for shape, billions in {"8B": 8.03, "1B": 1.24, "124M": 0.124}.items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**latency.SHAPES[shape]))
        assert model.num_parameters() / 1e9 == pytest.approx(billions, rel=0.01)


def test_layers_that_share_weights_compute_as_layers_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    monkeypatch.setitem(latency.SHAPES, "small", {"model_type": "llama", **small, **heads})
    monkeypatch.setattr(latency, "WHOLE", 0)
    shared = latency.model_of("small")
    first, last = (shared.model.layers[k].mlp.up_proj.weight.data_ptr() for k in (0, 2))
    assert first == last
    own = type(shared)(shared.config)
    own.load_state_dict(shared.state_dict())
    ids = torch.arange(8)[None]
    assert torch.allclose(shared(ids).logits.float(), own.to(shared.dtype).eval()(ids).logits.float(), atol=1e-4)
    rates = latency.decoding(latency.by_transformers(shared), batch_size=2, written=4, repeats=2)
    assert len(rates) == 2 and min(rates) > 0


def test_both_libraries_are_timed(trained: Path, exported: dict[str, Path]) -> None:
    for engine in (Student.load(trained), DeployedStudent.load(exported["int8"])):
        assert min(latency.decoding(latency.decode_of(engine), batch_size=2, written=4, repeats=2)) > 0


def test_an_unknown_shape_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"parameter shapes: '.*nothing' is neither 8B, 1B, 124M nor a model"):
        latency.model_of(str(tmp_path / "nothing"))


def test_precisions_are_those_of_the_settings() -> None:
    allowed = DeploymentSettings.model_fields["precisions"].annotation.__args__[0].__args__
    assert set(allowed) == set(PRECISIONS)
    assert ProbeSettings.model_fields["engine"].annotation.__args__ == ("pytorch", *allowed)
