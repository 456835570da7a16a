"""The real notebooks, run headless from a foreign working directory on the smoke preset."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

from udrl_utils import probes, report, rounds, training
from udrl_utils.commands import Command, CommandCodec, CommandError
from udrl_utils.deploy.export import DeployedStudent
from udrl_utils.encoder import Encoder
from udrl_utils.errors import RunError
from udrl_utils.machine import shares
from udrl_utils.rewards import annotate_run
from udrl_utils.runs import STAMP, RunFolder, shards_of, write_json
from udrl_utils.samples import Sampler
from udrl_utils.settings import NOTEBOOKS, ROOT, AnalysisSettings, AnnotationSettings, TrainingSettings
from udrl_utils.student import Student
from udrl_utils.training import train_student


def test_every_contract_file_is_there(smoke_run: Path) -> None:
    record = json.loads((smoke_run / "run.json").read_text())
    assert list(record["stages"]) == list(NOTEBOOKS)
    assert record["environment"]["packages"]["trl"]
    annotated = pd.read_parquet(smoke_run / "02_annotated")  # the folder as a whole, as any tool would
    assert len(pd.read_parquet(smoke_run / "01_pairs")) == len(annotated)
    assert {"pair_id", "split", "task", "intent", "prompt", "teacher", "length", "relevance"} <= set(annotated.columns)
    assert (annotated.length == annotated.prompt.str.split().str.len()).all()
    assert (smoke_run / "03_student" / "README.md").exists()


def test_a_notebook_runs_by_papermill_alone(smoke_run: Path, tmp_path: Path) -> None:
    preset, notebook = ROOT / "notebooks/presets/smoke.yaml", ROOT / "notebooks/01_teacher_distillation.ipynb"
    command = ["papermill", str(notebook), "copy.ipynb", "-f", str(preset), "-p", "run", "mine"]
    environment = {**os.environ, "UDRL_OUTPUTS": str(tmp_path / "outputs"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-m", *command], cwd=tmp_path, env=environment, check=True, capture_output=True)
    for ours in (tmp_path / "outputs" / "mine" / "01_pairs").glob("part-*.parquet"):
        assert ours.read_bytes() == (smoke_run / "01_pairs" / ours.name).read_bytes()
    assert (tmp_path / "outputs" / "mine" / "run.json").exists()


def test_best_commands_were_measured(smoke_run: Path) -> None:
    codec = CommandCodec.load(smoke_run / "03_student")
    assert set(codec.best) == set(codec.edges)
    card = (smoke_run / "03_student" / "README.md").read_text()
    assert all(repr(codec.best_command(task)) in card for task in codec.edges)


def test_metrics_keep_their_contract(smoke_run: Path) -> None:
    metrics = json.loads((smoke_run / "04_analysis" / "metrics.json").read_text())
    assert set(metrics["systems"]) == {"teacher", "student_best", "student_open", "sft_plain", "nearest_copy"}
    for values in metrics["systems"].values():
        for value in values.values():
            assert value["low"] <= value["mean"] <= value["high"]
    assert metrics["relative_to_teacher"]["teacher"]["relevance"]["mean"] == 1
    assert {"spearman", "mae", "within_1", "within_2"} <= set(metrics["calibration"]["all"]["length"])


def test_precision_is_compared_with_what_samples_in_the_same_way(smoke_run: Path) -> None:
    quality = json.loads((smoke_run / "07_deployment" / "metrics.json").read_text())["quality"]
    for against, other in (("relative", "PyTorch"), ("relative_alike", "CTranslate2 float32")):
        for reward, ratio in quality["CTranslate2 int8"][against].items():
            expected = quality["CTranslate2 int8"]["sets"][reward]["mean"] / quality[other]["sets"][reward]["mean"]
            assert math.isclose(ratio["mean"], expected)


def test_sampling_is_one_setting_that_goes_with_the_student(smoke_run: Path) -> None:
    settings = RunFolder(smoke_run).settings(TrainingSettings)
    sampling = {name: getattr(settings, name) for name in ("temperature", "min_p", "guidance", "candidates")}
    assert CommandCodec.load(smoke_run / "03_student").sampling == sampling
    student, command = Student.load(smoke_run / "03_student"), Command("text_to_image", length=12, relevance=0.9)
    by_default = student.generate(["koi pond"], command, n=4)
    assert by_default == student.generate(["koi pond"], command, n=4, **sampling)
    assert by_default != student.generate(["koi pond"], command, n=4, **{**sampling, "guidance": 3.0})
    exported = DeployedStudent.load(smoke_run / "07_deployment" / "int8")
    assert exported.sampling.temperature == settings.temperature


def test_samples_agree_with_metrics(smoke_run: Path) -> None:
    samples = pd.read_parquet(smoke_run / "04_analysis" / "calibration.parquet")
    metrics = json.loads((smoke_run / "04_analysis" / "metrics.json").read_text())
    rows = samples[samples.reward == "length"]
    error = (rows.asked_length - rows.prompt.str.split().str.len()).abs().mean()
    assert math.isclose(error, metrics["calibration"]["all"]["length"]["mae"])


def test_the_student_loads_plainly_and_generates(smoke_run: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = smoke_run / "03_student"
    assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "gpt2"
    assert "<|prompt|>" in AutoTokenizer.from_pretrained(folder).get_vocab()
    student = Student.load(folder)
    written = student.generate(["koi pond"], Command(task="text_to_image", length=18, relevance=0.9), n=4, seed=0)
    assert len(written) == 1 and len(written[0]) == 4


def test_executed_notebooks_show_figures_and_no_errors(smoke_run: Path) -> None:
    for name in NOTEBOOKS.values():
        notebook = nbformat.read(smoke_run / "notebooks" / f"{name}.ipynb", 4)
        outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
        assert not [output for output in outputs if output.output_type == "error"]
        assert any("image/png" in output.get("data", {}) for output in outputs), name


@pytest.fixture
def half_the_threads() -> Iterator[None]:
    """As many as the notebook's training has beside that of the baseline: sums of other parts round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(shares(2)[1])
    yield
    torch.set_num_threads(before)


def test_training_is_seeded_and_resumes_exactly(
    smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half_the_threads: None
) -> None:
    from safetensors.numpy import load_file
    from transformers import Trainer

    copy = tmp_path / "run"
    shutil.copytree(smoke_run, copy)
    before = load_file(copy / "03_student" / "rounds" / "0" / "model.safetensors")
    run = RunFolder(copy)
    settings = run.settings(TrainingSettings)
    save, saved = Trainer._save_checkpoint, []

    def dies_after_saving(self, *args, **options) -> None:
        save(self, *args, **options)
        saved.append(self.state.global_step)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_save_checkpoint", dies_after_saving)
    with pytest.raises(KeyboardInterrupt):
        train_student(settings, run)
    assert Student.load(copy / "03_student"), "the last good student stays loadable"
    monkeypatch.setattr(Trainer, "_save_checkpoint", save)
    log = train_student(settings.model_copy(update={"model_repo": "me/student"}), run)
    assert min(entry["step"] for entry in log.entries) > saved[0], "where it is uploaded changes no result"
    after = load_file(copy / "03_student" / "model.safetensors")
    assert all((before[name] == after[name]).all() for name in before)


def test_a_checkpoint_of_other_pairs_is_not_resumed(smoke_run: Path, tmp_path: Path, capsys) -> None:
    copy = tmp_path / "run"
    shutil.copytree(smoke_run, copy)
    run, work = RunFolder(copy), copy / "03_student" / "checkpoints"
    settings = run.settings(TrainingSettings)

    def resumed() -> bool:
        (work / "checkpoint-7").mkdir(parents=True, exist_ok=True)
        (work / "checkpoint-7" / "trainer_state.json").touch()
        return training.last_checkpoint(work, training.student_stamp(settings, run)) is not None

    assert not resumed(), "nobody knows what it was made from"
    assert "checkpoints is made anew" in capsys.readouterr().out
    assert resumed() and capsys.readouterr().out == ""
    shard = shards_of(copy / "02_annotated")[0]
    pd.read_parquet(shard).assign(relevance=0.5).to_parquet(shard)
    assert not resumed()
    assert f"made with other content of {shard.name}" in capsys.readouterr().out


def test_annotations_are_made_again_when_the_pairs_or_rewards_change_and_only_then(
    smoke_run: Path, tmp_path: Path, capsys
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(smoke_run, copy)
    run = RunFolder(copy)
    settings, shards = run.settings(AnnotationSettings), shards_of(copy / "02_annotated")
    same = [file.read_bytes() for file in shards]
    for file in shards[1:]:
        file.write_bytes(shards[0].read_bytes())  # sound, so that only what is made again differs from it

    def made_again(**changes) -> bool:
        annotate_run(settings.model_copy(update=changes), run)
        return shards_of(copy / "02_annotated")[-1].read_bytes() != shards[0].read_bytes()

    assert not made_again(data_repo="me/pairs", judge_timeout=3.0)
    pairs = shards_of(copy / "01_pairs")[0]
    original = pairs.read_bytes()
    pd.read_parquet(pairs).head(9).to_parquet(pairs)
    assert made_again() and f"made with other content of {pairs.name}" in capsys.readouterr().out
    pairs.write_bytes(original)
    annotate_run(settings, run)
    assert [file.read_bytes() for file in shards] == same
    assert made_again(rewards=["length"]) and "made with rewards=" in capsys.readouterr().out


def test_a_report_runs_no_code_of_the_run(smoke_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(smoke_run, copy)
    (copy / "02_annotated" / "_rewards.py").write_text("raise SystemExit('this was executed')")
    assert report.build(RunFolder(copy)).exists()
    assert json.loads((copy / "02_annotated" / "_units.json").read_text())["length"] == "words"


def test_a_round_that_was_cut_off_goes_on_where_it_was(
    smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(smoke_run, copy)
    run = RunFolder(copy)
    settings, home = run.settings(TrainingSettings), copy / "03_student" / "rounds"
    files = ("1/hindsight.parquet", "1/model.safetensors", "../model.safetensors")
    whole = {file: (home / file).read_bytes() for file in files}
    write_json(home / STAMP, training.student_stamp(settings, run))
    shutil.rmtree(home / "1")

    def dies(*_, **__) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rounds, "fit", dies)
    assert train_student(settings, run).entries, "the student of round 0 is not trained again"
    with pytest.raises(KeyboardInterrupt):
        rounds.train_rounds(settings, run)
    assert Student.load(copy / "03_student"), "the last good student stays loadable"
    written = (home / "1" / "hindsight.parquet").stat().st_mtime_ns
    monkeypatch.undo()
    rounds.train_rounds(settings, run)
    assert (home / "1" / "hindsight.parquet").stat().st_mtime_ns == written, "what was asked is not asked again"
    assert {file: (home / file).read_bytes() for file in whole} == whole
    assert not (home / STAMP).exists()


def test_a_second_round_learns_from_the_first_too(smoke_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(smoke_run, copy)
    run = RunFolder(copy)
    rounds.train_rounds(run.settings(TrainingSettings).model_copy(update={"rounds": 2, "learnt_guidance": 1.0}), run)
    written = [pd.read_parquet(copy / "03_student" / "rounds" / str(k) / "hindsight.parquet") for k in (1, 2)]
    assert set(written[1].teacher) == {"round 2"} and not set(written[0].pair_id) & set(written[1].pair_id)
    student, last = (copy / "03_student" / at / "model.safetensors" for at in ("", "rounds/2"))
    assert student.read_bytes() == last.read_bytes()


def test_hindsight_is_relabelled_with_what_was_achieved(smoke_run: Path) -> None:
    rows = pd.read_parquet(smoke_run / "03_student" / "rounds" / "1" / "hindsight.parquet")
    assert (rows.length == rows.prompt.str.split().str.len()).all()
    train = pd.read_parquet(smoke_run / "02_annotated").query("split == 'train'")
    assert set(rows.intent) <= set(train.intent), "a round asks for train intents only"


def test_probes_are_in_the_metrics(smoke_run: Path) -> None:
    metrics = json.loads((smoke_run / "04_analysis" / "metrics.json").read_text())
    for name in ("relevance", "diversity"):
        found = metrics["likelihood"][name]
        assert 0 <= found["top_1"] <= found["within_1"] <= 1
    joint = {"length", "relevance", "diversity", "length_within_1", "diversity_among_teacher"}
    assert joint == set(metrics["joint"]) and all(-1 <= value <= 1 for value in metrics["joint"].values())
    assert any("never seen" in probe["probe"] for probe in metrics["edge"])


def test_a_sample_is_set_beside_the_teachers_other_prompts() -> None:
    axes = {"koi": (1, 0), "pond": (0, 1), "carp": (0.6, 0.8)}
    columns = {"task": "text_to_image", "intent": "fish", "pair_id": ["a", "b", "c"], "prompt": list(axes)}
    annotated = pd.DataFrame(columns)
    samples = pd.DataFrame({"set": [0, 1], "prompt": ["koi", "carp"]}, index=[5, 7])
    apart = probes.among_teacher(samples, annotated, annotated, lambda texts: np.array([axes[text] for text in texts]))
    assert apart.to_dict() == pytest.approx({5: 1 - (0 + 0.6) / 2, 7: 1 - (0.6 + 1) / 2})


def test_log_likelihoods_are_those_of_the_model(smoke_run: Path) -> None:
    import torch

    student = Student.load(smoke_run / "03_student")
    prefixes = [student.prefix(intent, Command("text_to_image", length=9)) for intent in ("koi pond", "a red fox")]
    prompts = [" koi in a pond", " a fox that reads the morning paper"]
    found = student.log_likelihood(prefixes, prompts)
    for prefix, prompt, score in zip(prefixes, prompts, found, strict=True):
        start = len(student.tokenizer(prefix).input_ids)
        ids = torch.tensor([student.tokenizer(prefix + prompt + student.tokenizer.eos_token).input_ids])
        with torch.inference_mode():
            logits = student.model(ids).logits[0, :-1].log_softmax(-1)
        each = logits.gather(-1, ids[0, 1:, None])[start - 1 :, 0]
        assert math.isclose(score, float(each.sum()), rel_tol=1e-4)
    assert student.log_likelihood(prefixes[:1], [" koi pond" * 500])[0] < found[0], "what does not fit is left out"


def test_an_infeasible_command_is_moved_with_a_note(smoke_run: Path) -> None:
    student = Student.load(smoke_run / "03_student")
    beyond = Command("text_to_image", length=student.codec.longest + 20)
    with pytest.warns(UserWarning, match="beyond what was trained"):
        student.generate(["koi pond"], beyond)
    with pytest.raises(CommandError, match="lengths 1 to"):
        student.generate(["koi pond"], beyond, strict=True)


def test_a_missing_stage_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="03_udrl_training"):
        Student.load(tmp_path)
    with pytest.raises(RunError, match="04_analysis"):
        report.read_metrics(RunFolder(tmp_path))


class Parrot:
    """A language model that says what it is asked for, and answers nothing to one intent."""

    def write(self, requests: list, journal: object) -> list[list[str]]:
        return [[] if "owls" in r.intent else [f"a picture of {r.intent}"] * r.n for r in requests]


def test_intents_from_outside_are_put_to_the_student_and_to_a_model(smoke_run: Path, tmp_path: Path) -> None:
    (tmp_path / "typed.csv").write_text("typed\nA red bicycle.\nmoonlit harbour\na red bicycle\nowls on a wire\n")
    run = RunFolder(smoke_run)
    settings = run.settings(AnalysisSettings).model_copy(
        update={"outside_intents": str(tmp_path / "typed.csv"), "outside_column": "typed"}
    )
    rewards, encoder = run.settings(AnnotationSettings).rewards, Encoder(run.settings(AnnotationSettings).encoder)
    sampler = Sampler(Student.load(smoke_run / "03_student"), rewards, encoder, **settings.sampling())
    intents = probes.read_outside(settings)
    assert sorted(intents) == ["A red bicycle.", "moonlit harbour", "owls on a wire"]
    found = probes.outside_intents(sampler, intents, {"parrot": Parrot()}, settings, run)
    assert found["intents"] == 2 and found["reference"] == "parrot"
    model, student = (found["relevance"][name]["mean"] for name in ("parrot", "student_best"))
    assert math.isclose(found["relative_to_reference"]["mean"], student / model) and model > 0.5
    alone = probes.outside_intents(sampler, intents, {}, settings, run)
    assert alone["intents"] == 3 and set(alone["relevance"]) == {"student_best"}
