"""Engines: an exported student writes what the trained one would, and says what it cannot do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from udrl_utils.commands import Command, CommandCodec, CommandError
from udrl_utils.deploy import latency
from udrl_utils.deploy.export import CTRANSLATE2, GGUF, DeployedStudent, export, fastest_engine
from udrl_utils.deploy.llama import write_gguf
from udrl_utils.engine import Sampling
from udrl_utils.gpt2 import new_student, train_tokenizer
from udrl_utils.runs import RunFolder, write_json
from udrl_utils.settings import ROOT, DeploymentSettings, RunError, SettingsError, TrainingSettings, resolve
from udrl_utils.student import Student

TASK = "text_to_image"
COMMAND = Command(TASK, length=6, relevance=0.9)
TEXTS = ["koi pond at dusk, oil painting", "tea house in the rain", "an owl, linocut, soft light"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that has learnt a few prompts by heart, saved."""
    settings = resolve(TrainingSettings, yaml.safe_load((ROOT / "notebooks" / "presets" / "smoke.yaml").read_text()))
    codec = CommandCodec(10, 20, {TASK: {"relevance": [k / 10 for k in range(11)]}})
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
        for precision in ("float32", "q8_0", "int8")
    }


def test_an_exported_student_writes_what_the_trained_one_does(trained: Path, exported: dict[str, Path]) -> None:
    intents = [text.split()[0] for text in TEXTS]
    expected = Student.load(trained).generate(intents, COMMAND, temperature=0.01)
    assert [texts[0] for texts in expected] == TEXTS
    for folder in exported.values():
        assert DeployedStudent.load(folder).generate(intents, COMMAND, temperature=0.01) == expected


@pytest.mark.parametrize("precision", ["float32", "q8_0", "int8"])
def test_a_student_in_half_precision_is_exported_too(precision: str, trained: Path, tmp_path: Path) -> None:
    student, intents = Student.load(trained), [text.split()[0] for text in TEXTS]
    student.model.to(torch.float16)
    (tmp_path / "half").mkdir()
    student.save(tmp_path / "half")
    engine = DeployedStudent.load(export(tmp_path / "half", tmp_path / precision, precision))
    assert [texts[0] for texts in engine.generate(intents, COMMAND, temperature=0.01)] == TEXTS


@pytest.mark.parametrize("precision", ["float32", "q8_0"])
def test_one_seed_gives_the_same_prompts_and_another_gives_others(precision: str, exported: dict[str, Path]) -> None:
    engine = DeployedStudent.load(exported[precision])
    hot = {"n": 8, "temperature": 2.0, "top_k": 0, "top_p": 1.0}
    first = engine.generate(["koi"], COMMAND, seed=1, **hot)
    assert first == engine.generate(["koi"], COMMAND, seed=1, **hot)
    assert first != engine.generate(["koi"], COMMAND, seed=2, **hot)
    assert first == DeployedStudent.load(exported[precision]).generate(["koi"], COMMAND, seed=1, **hot)
    assert len(set(first[0])) > 4, "each of a set has a seed of its own"


@pytest.mark.parametrize("engine", ["trained", "float32", "q8_0", "int8"])
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
    ("precision", "changes", "known"),
    [
        ("int8", {"guidance": 2.0}, "top_k, top_p"),
        ("int8", {"min_p": 0.1}, "top_k, top_p"),
        ("q8_0", {"guidance": 2.0}, "min_p, top_k, top_p"),
    ],
)
def test_what_an_engine_cannot_do_is_one_line(
    precision: str, changes: dict, known: str, exported: dict[str, Path]
) -> None:
    with pytest.raises(CommandError, match=f"is beyond this engine, which samples by seed, temperature, {known}"):
        DeployedStudent.load(exported[precision]).generate(["koi"], COMMAND, **changes)


def test_an_engine_that_is_not_used_can_be_given_up(exported: dict[str, Path]) -> None:
    program = "import sys; from udrl_utils.deploy.export import DeployedStudent; DeployedStudent.load(sys.argv[1])"
    for folder in exported.values():
        subprocess.run([sys.executable, "-c", program, str(folder)], check=True, timeout=60)


MANY = r"""
import re, sys
from pathlib import Path
from udrl_utils.deploy.llama import LlamaCpp
model = LlamaCpp(Path(sys.argv[1]), 256, 1)
held = lambda: int(re.search(r"VmRSS:\s*(\d+)", Path("/proc/self/status").read_text()).group(1))
for part in range(2):
    for k in range(300):
        model.write([500 + 300 * part + k] * 20, 10, temperature=0.0)
    print(held())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say what a process holds")
def test_memory_stays_flat_over_many_prompts(tmp_path: Path) -> None:
    settings = resolve(TrainingSettings, yaml.safe_load((ROOT / "notebooks" / "presets" / "smoke.yaml").read_text()))
    tokenizer = train_tokenizer(TEXTS, 1500, [f"<|{k}|>" for k in range(1200)])
    new_student(settings, tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    write_gguf(tmp_path, tmp_path / "student.gguf")
    command = [sys.executable, "-c", MANY, str(tmp_path / "student.gguf")]
    some, more = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert more - some < 2000  # kB


def test_unknown_ways_to_sample_are_one_line(trained: Path) -> None:
    with pytest.raises(CommandError, match="beam=4 is beyond this engine, which samples by seed, temperature, min_p"):
        Student.load(trained).generate(["koi"], COMMAND, beam=4)


def test_commands_are_checked_as_of_the_trained_student(exported: dict[str, Path]) -> None:
    engine = DeployedStudent.load(exported["int8"])
    with pytest.raises(CommandError, match="is empty"):
        engine.generate([" "], COMMAND)
    with pytest.raises(CommandError, match="beyond what was trained"):
        engine.generate(["koi"], Command(TASK, length=55), strict=True)
    with pytest.warns(UserWarning, match="asked for"):
        engine.generate(["koi"], Command(TASK, length=55))


@pytest.mark.parametrize("precision", ["int8", "q8_0"])
def test_long_and_odd_intents_are_answered(precision: str, exported: dict[str, Path]) -> None:
    engine = DeployedStudent.load(exported[precision])
    odd = ["word " * 5000, "<|end|><|length:3|>", "\u202eevil\u0000", "🦎" * 300, "<script>"]
    assert all(len(texts) == 1 for texts in engine.generate(odd, COMMAND))


@pytest.mark.parametrize(("precision", "share"), [("int8", 0.4), ("q8_0", 0.5)])  # a GGUF file holds the vocabulary too
def test_8_bits_weigh_less_and_load_without_pytorch(precision: str, share: float, exported: dict[str, Path]) -> None:
    engines = {name: DeployedStudent.load(folder) for name, folder in exported.items()}
    assert latency.weights_mb(engines[precision]) < share * latency.weights_mb(engines["float32"])
    cold = latency.cold_start(engines[precision])
    assert 0 < cold["load_s"] < cold["first_word_s"] <= cold["first_prompt_s"]
    assert cold["memory_mb"] < 200, "PyTorch alone would be more"


def test_the_fastest_engine_of_a_run(trained: Path, exported: dict[str, Path], tmp_path: Path) -> None:
    made = {"stages": {"07_deployment": {"settings": {"precisions": list(exported)}}}}
    write_json(trained.parent / "run.json", made)
    assert fastest_engine(RunFolder(trained.parent)).folder == exported["int8"]
    made["stages"]["07_deployment"]["settings"]["student"] = "ready"
    write_json(trained.parent / "run.json", made)
    assert isinstance(fastest_engine(RunFolder(trained.parent)), Student), "what was exported is the shipped student"
    write_json(trained.parent / "run.json", {"stages": {"03_student": {}}})
    assert isinstance(fastest_engine(RunFolder(trained.parent)), Student), "what was exported is of an older student"
    (tmp_path / "03_student").symlink_to(trained)
    assert isinstance(fastest_engine(RunFolder(tmp_path)), Student)
    with pytest.raises(RunError, match="run notebooks/03_udrl_training"):
        fastest_engine(RunFolder(tmp_path / "nothing"))


def test_a_missing_student_or_export_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="run notebooks/03_udrl_training"):
        export(tmp_path, tmp_path / "int8", "int8")
    with pytest.raises(RunError, match="run notebooks/07_deployment"):
        DeployedStudent.load(tmp_path)


@pytest.mark.parametrize(("precision", "library"), [("int8", "ctranslate2"), ("q8_0", "xllamacpp")])
def test_without_the_extra_it_is_one_line(
    precision: str, library: str, monkeypatch: pytest.MonkeyPatch, exported: dict[str, Path]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(SettingsError, match=r"pip install 'udrl_utils\[deploy\]'"):
        DeployedStudent.load(exported[precision])


def test_what_llama_cpp_refuses_is_said(exported: dict[str, Path]) -> None:
    engine = DeployedStudent.load(exported["q8_0"])
    with pytest.raises(RunError, match=r"llama\.cpp cannot go on"):
        engine.model.write([0] * 5000, 4)
    assert engine.generate(["tea"], COMMAND, temperature=0.01) == [[TEXTS[1]]], "and what it can do, it does"


def test_a_model_that_is_no_gpt2_is_not_written_as_gguf(trained: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    folder = shutil.copytree(trained, tmp_path / "student")
    LlamaForCausalLM(LlamaConfig(vocab_size=400, **shape)).save_pretrained(folder)
    with pytest.raises(RunError, match="takes a GPT-2 of a width that is a multiple of 32; this is a llama"):
        export(folder, tmp_path / "q8_0", "q8_0")
    assert not (tmp_path / "q8_0").exists()


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


def test_libraries_are_timed_on_the_same_draws(trained: Path, exported: dict[str, Path]) -> None:
    how = Sampling(temperature=1.1, top_k=50, top_p=0.9)
    model, asked = Student.load(trained).model, {}
    model.generate = lambda *_, **given: asked.update(given)
    latency.by_transformers(model, how)(2, 4)
    drawn = {"do_sample": True, "temperature": 1.1, "top_k": 50, "top_p": 0.9}
    assert drawn.items() <= asked.items() and not {"seed", "guidance", "min_p"} & asked.keys()
    latency.by_transformers(model)(2, 4)
    assert asked["do_sample"] is False
    ct2, llama = (DeployedStudent.load(exported[name]) for name in ("int8", "q8_0"))
    told = {"sampling_temperature": 1.1, "sampling_topk": 50, "sampling_topp": 0.9}
    assert ct2.options(how) == told
    assert llama.options(how).items() >= {"temperature": 1.1, "top_k": 50, "top_p": 0.9, "min_p": 0.0}.items()
    for decode in (
        latency.by_ctranslate2(ct2.generator(0), ct2.codec.tokens()[0], how),
        latency.by_llamacpp(llama.model),
    ):
        assert min(latency.decoding(decode, batch_size=2, written=4, repeats=2)) > 0


def test_an_unknown_shape_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"parameter shapes: '.*nothing' is neither 8B, 1B, 124M nor a model"):
        latency.model_of(str(tmp_path / "nothing"))


def test_precisions_are_those_of_the_settings() -> None:
    allowed = DeploymentSettings.model_fields["precisions"].annotation.__args__[0].__args__
    assert set(allowed) == {*CTRANSLATE2, GGUF}
