"""Settings, presets and the run folder: what is refused is refused in one line, before anything is written."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import yaml

from udrl_utils.errors import RunError, SettingsError
from udrl_utils.runs import RunFolder
from udrl_utils.settings import DEFAULTS, ROOT, SETTINGS, STAGES, DistillationSettings, TrainingSettings, resolve
from udrl_utils.training import seen

PRESETS = sorted((ROOT / "notebooks" / "presets").glob("*.yaml"))


def settings_of(stage: str, **changes):
    return resolve(SETTINGS[stage], DEFAULTS | {"run": "a"} | changes)


def cells_that_ran(*cells: str) -> dict:
    """The namespace of a kernel that ran these cells."""
    namespace = {"In": ["", *cells, "settings = TrainingSettings.from_notebook(globals())"]}
    for cell in cells:
        exec(cell, namespace)
    return namespace


@pytest.fixture
def folder(tmp_path, monkeypatch) -> RunFolder:
    monkeypatch.setenv("UDRL_OUTPUTS", str(tmp_path))
    return RunFolder("a")


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_resolves_and_holds_only_what_differs_from_the_defaults(preset):
    values = yaml.safe_load(preset.read_text())
    assert values["run"] == preset.stem
    assert not [name for name, value in values.items() if name != "run" and value == DEFAULTS[name]]
    for cls in SETTINGS.values():
        resolved = resolve(cls, values).model_dump(mode="json")
        assert resolved == {name: (DEFAULTS | values)[name] for name in cls.model_fields}


def test_the_ready_student_differs_from_that_of_the_laptop_in_the_amount_of_training_only():
    ready = yaml.safe_load((PRESETS[0].parent / "ready.yaml").read_text())
    assert ready.keys() <= {"run", "shard_size", "n_intents", "epochs", "rounds", "round_sets", "learnt_guidance"}


@pytest.mark.parametrize(
    ("cls", "change", "told"),
    [
        (TrainingSettings, {"epoch": 3}, "epoch=3; did you mean epochs?"),
        (TrainingSettings, {"qqqqqq": "x"}, "qqqqqq='x'; allowed are ablation_rows, ablation_seeds"),
        (TrainingSettings, {"epochs": -1}, "epochs=-1 should be greater than or equal to 0"),
        (TrainingSettings, {"epochs": "many"}, "epochs='many' should be a valid number"),
        (TrainingSettings, {"bins": 1}, "bins=1 should be greater than or equal to 2"),
        (TrainingSettings, {"bins": 2.5}, "bins=2.5 should be a valid integer"),
        (TrainingSettings, {"command_dropout": 1.0}, "command_dropout=1.0 should be less than 1"),
        (TrainingSettings, {"learning_rate": float("nan")}, "learning_rate=nan should be"),
        (TrainingSettings, {"copy_init": "maybe"}, "copy_init='maybe' should be a valid boolean"),
        (TrainingSettings, {"base": None}, "base=None should be a valid string"),
        (TrainingSettings, {"run": "../elsewhere"}, "run='../elsewhere' should match pattern"),
        (TrainingSettings, {"seed": -1}, "seed=-1 should be greater than or equal to 0"),
        (TrainingSettings, {"n_embd": 100}, "n_embd=100 should be a multiple of 16, twice n_head=8"),
        (TrainingSettings, {"word_swaps": 2}, "word_swaps=2 should be less than or equal to 1"),
        (TrainingSettings, {"unseen_lengths": [17]}, "unseen_lengths=[17] should be a valid dictionary"),
        (DistillationSettings, {"teacher": "oracle"}, "teacher='oracle' should be 'recorded', 'local' or 'openai'"),
        (DistillationSettings, {"tasks": ["poem"]}, "tasks='poem' should be 'text_to_image', 'text_to_template', "),
        (DistillationSettings, {"tasks": []}, "tasks=[] List should have at least 1 item"),
        (DistillationSettings, {"intents": ""}, "intents='' should have at least 1 character"),
        (DistillationSettings, {"near_duplicate": 1.1}, "near_duplicate=1.1 should be less than or equal to 1"),
        (DistillationSettings, {"min_words": 9, "max_words": 8}, "max_words=8 should not be less than min_words=9"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_with_parameter_value_and_what_is_allowed(cls, change, told):
    with pytest.raises(SettingsError) as caught:
        resolve(cls, change)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_of_other_cells_are_no_parameters():
    namespace = cells_that_ran(
        'run = "a"\nbins = 5  # levels', "rows = 12\nepoch = 3\nintents = {1: 2}\nseeds, n = 1, 2"
    )
    settings = TrainingSettings.from_notebook(namespace)
    assert (settings.run, settings.bins, settings.epochs) == ("a", 5, 0)
    assert settings._given.keys() <= TrainingSettings.model_fields.keys()


def test_a_mistyped_name_is_reported_each_time_and_only_until_it_is_corrected():
    namespace = cells_that_ran('run = "a"\nepoch: int = 9', "rows = 12")
    for _ in range(2):
        with pytest.raises(SettingsError, match=r"^unknown parameter epoch=9; did you mean epochs\?$"):
            TrainingSettings.from_notebook(namespace)
    corrected = 'run = "a"\nepochs = 9'
    exec(corrected, namespace)
    namespace["In"].append(corrected)
    assert TrainingSettings.from_notebook(namespace).epochs == 9


def test_papermill_gives_parameters_of_all_stages_and_a_mistyped_one_is_reported():
    cells = ['run = "a"\nbins = 5', '# Parameters\nrun = "b"\nn_intents = 3\n']
    settings = TrainingSettings.from_notebook(cells_that_ran(*cells))
    assert (settings.run, settings.bins, settings._given["n_intents"]) == ("b", 5, 3)
    with pytest.raises(SettingsError, match="unknown parameter epoch=9"):
        TrainingSettings.from_notebook(cells_that_ran(*cells, "# Parameters\nepoch = 9"))
    with pytest.raises(SettingsError, match="unknown parameter bin=5; did you mean bins"):
        TrainingSettings.from_notebook(cells_that_ran('run = "a"\nbin = 5', cells[1]))


def test_the_user_sees_a_mistake_without_a_traceback():
    assert SettingsError("bins=1")._render_traceback_() == ["SettingsError: bins=1"]


def test_run_json_round_trip(folder):
    for stage in STAGES:
        settings = settings_of(stage)
        folder.start(stage, settings).finish(stage, settings, rows=7)
    record = folder.read()
    assert list(record["stages"]) == list(STAGES)
    assert all(record["stages"][stage]["rows"] == 7 and record["stages"][stage]["seconds"] >= 0 for stage in STAGES)
    assert set(record["environment"]) == {"python", "packages", "git_revision", "machine", "system"}
    for stage, cls in SETTINGS.items():
        assert RunFolder("a").settings(cls).model_dump() == settings_of(stage).model_dump()
    assert json.loads((folder / "run.json").read_text()) == record


def test_an_earlier_stage_made_again_forgets_the_later_ones(folder):
    for stage in (*STAGES[:3], STAGES[1]):
        folder.start(stage, settings_of(stage)).finish(stage, settings_of(stage))
    assert set(folder.read()["stages"]) == set(STAGES[:2])


def test_a_missing_stage_names_its_notebook_and_leaves_no_folder(folder):
    with pytest.raises(RunError, match=r"has no 01_pairs yet: run notebooks/01_teacher_distillation\.ipynb first"):
        folder.start("03_student", settings_of("03_student"))
    assert not folder.path.exists()


def test_a_stage_that_asks_the_shipped_student_needs_no_run(folder):
    folder.start("05_probes", settings_of("05_probes", student="ready")).release()
    with pytest.raises(RunError, match="has no 01_pairs yet"):
        folder.start("05_probes", settings_of("05_probes"))
    with pytest.raises(SettingsError, match="student='other' should be '' or 'ready'"):
        settings_of("05_probes", student="other")


def test_an_earlier_stage_made_with_other_settings_is_refused(folder):
    folder.start("01_pairs", settings_of("01_pairs")).finish("01_pairs", settings_of("01_pairs"))
    with pytest.raises(RunError) as caught:
        folder.start("02_annotated", settings_of("02_annotated", n_intents=8))
    assert f"n_intents={DEFAULTS['n_intents']}, now n_intents=8" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (folder / "02_annotated").exists()
    folder.start("02_annotated", settings_of("02_annotated"))


def test_the_same_setting_in_another_notation_is_the_same(folder):
    for stage in STAGES[:3]:
        folder.start(stage, settings_of(stage)).finish(stage, settings_of(stage))
    folder.start("04_analysis", settings_of("04_analysis", learning_rate=f"{DEFAULTS['learning_rate']:e}"))


def test_a_path_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UDRL_OUTPUTS", str(tmp_path / "file"))
    with pytest.raises(RunError, match=r"run='a': cannot write to .*01_pairs") as caught:
        RunFolder("a").start("01_pairs", settings_of("01_pairs"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["length 0", "length 8.5", "diversity 2", "diversity", "relevance=0.9", "length -1"])
def test_a_search_command_that_cannot_be_read_is_refused(part):
    with pytest.raises(SettingsError, match=r"search_command=.* should hold rewards with a number"):
        settings_of("06_search", search_command=[part])


def test_a_search_command_is_read_as_numbers():
    settings = settings_of("06_search", search_command=["length 12", "relevance 1", "mine_too 0.25"])
    assert settings.asked() == {"length": 12, "relevance": 1.0, "mine_too": 0.25}


def test_unseen_lengths_are_kept_from_their_task_alone():
    rows = pd.DataFrame({"task": ["text_to_template", "text_to_image", "text_to_template"], "length": [17, 17, 18]})
    settings = settings_of("03_student")
    assert list(seen(rows, settings).task) == ["text_to_image", "text_to_template"]
    images = rows[rows.task == "text_to_image"]
    assert len(seen(images, settings)) == 1, "a run without the task trains on every length"
    assert len(seen(rows, settings_of("03_student", unseen_lengths={}))) == 3
    both = settings_of("03_student", unseen_lengths={"text_to_image": [17], "text_to_template": [18]})
    assert list(seen(rows, both).length) == [17]
