"""The `udrl` command: mistakes cost one line and write nothing; notebooks run in order and stop at a failure."""

from __future__ import annotations

import shutil
import sys

import nbformat
import pytest
from typer.testing import CliRunner

from udrl_utils import cli, presets
from udrl_utils.runs import outputs_root, write_json
from udrl_utils.settings import NOTEBOOKS, ROOT, STAGES


@pytest.fixture(autouse=True)
def _here(outputs) -> None:
    """Every run of this file goes to a folder of its own."""


def udrl(*arguments: str):
    return CliRunner().invoke(cli.app, list(arguments))


BAD = {
    "unknown preset": (("--preset", "huge"), "is neither one of gpu, laptop, paper, ready, record, smoke"),
    "missing preset file": (("--preset", "mine.yaml"), "preset='mine.yaml' is neither"),
    "unknown key": (("--set", "epoch=3"), "unknown parameter epoch=3; did you mean epochs?"),
    "impossible value of a stage that is not run": (("--to", "1", "--set", "bins=1"), "bins=1 should be"),
    "no value": (("--set", "epochs"), "set='epochs' is not of the form key=value"),
    "not YAML": (("--set", "tasks=[a"), "tasks='[a' is not YAML"),
    "bad run name": (("--run", "../a"), "run='../a' should match"),
    "from 0": (("--from", "0"), f"from=0 is not the number of a notebook, 1 to {len(STAGES)}"),
    "to 9": (("--to", "9"), f"to=9 is not the number of a notebook, 1 to {len(STAGES)}"),
    "backwards": (("--from", "3", "--to", "2"), "to=2 comes before from=3"),
    "missing stage": (("--from", "3"), "has no 01_pairs yet"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_costs_one_line_and_writes_nothing(case, outputs):
    arguments, told = BAD[case]
    result = udrl("run", "--preset", "smoke", *arguments)
    assert result.exit_code == 2
    assert told in result.stderr
    assert result.stderr.count("\n") == 1
    assert not result.stdout
    assert not outputs.exists()


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", ""], ids=["list", "broken", "empty"])
def test_a_preset_file_that_is_no_preset(text, tmp_path, outputs):
    (tmp_path / "mine.yaml").write_text(text)
    result = udrl("run", "--preset", str(tmp_path / "mine.yaml"))
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert not outputs.exists()


def test_changes_are_read_as_yaml():
    changes = ["epochs=5", "learning_rate=2e-5", "base="]
    changes += ["tasks=[related_search]", "teacher_base_urls=[http://host:1/v1]"]
    settings = presets.read_settings("laptop", changes, "b")
    training, distillation = settings["03_student"], settings["01_pairs"]
    assert (training.run, training.epochs, training.learning_rate, training.base) == ("b", 5, 2e-5, "")
    assert (distillation.tasks, distillation.teacher_base_urls) == (["related_search"], ["http://host:1/v1"])


def mean(value: float) -> dict[str, float]:
    return {"mean": value, "low": value - 0.01, "high": value + 0.01}


METRICS = {
    "calibration": {"all": {"length": {"spearman": 0.99, "within_2": 0.93}, "relevance": {"spearman": 0.61}}},
    "systems": {
        "teacher": {"relevance": mean(0.5), "diversity": mean(0.4)},
        "student_best": {"relevance": mean(0.51), "diversity": mean(0.4)},
    },
    "relative_to_teacher": {
        "teacher": {"relevance": mean(1), "diversity": mean(1)},
        "student_best": {"relevance": mean(1.02), "diversity": mean(1)},
    },
    "open_vocabulary": {"noun_hit_rate": mean(0.87), "intents": 30},
}


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """A workbook with four tiny notebooks in place of the first four; each prints a parameter of its stage."""
    shown = ("n_intents", "encoder", "learning_rate", "min_p")
    folder = tmp_path / "workbook" / "notebooks"
    shutil.copytree(ROOT / "notebooks" / "presets", folder / "presets")
    for name, parameter in zip(NOTEBOOKS.values(), shown, strict=False):
        cells = [
            nbformat.v4.new_code_cell(f"{parameter} = 0", metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell(f"import sys\nprint('{parameter}', {parameter}, sys.executable)"),
        ]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{name}.ipynb")
    monkeypatch.chdir(folder.parent)
    return folder


def test_a_run_shows_what_cells_print_then_results_and_report(notebooks, outputs):
    write_json(outputs / "smoke" / "04_analysis" / "metrics.json", METRICS)
    result = udrl("run", "--preset", "smoke", "--set", "n_intents=77")
    assert result.exit_code == 0, result.output
    shown = ("n_intents 77", "encoder minilm", "04_analysis done in 0.", "0.51 [0.5, 0.52]", "102.0% [101.0%, 103.0%]")
    for text in (*shown, "+2.0%", "0.610", "87.0%", str(outputs / "smoke" / "report.html")):
        assert text in result.stdout
    assert sorted(path.stem for path in (outputs / "smoke" / "notebooks").iterdir()) == list(NOTEBOOKS.values())[:4]


def test_outputs_are_written_to_the_workbook_that_one_works_in(notebooks, monkeypatch):
    monkeypatch.delenv("UDRL_OUTPUTS")
    for folder in (notebooks.parent, notebooks):
        monkeypatch.chdir(folder)
        assert outputs_root() == notebooks.parent / "outputs"
    assert udrl("run", "--preset", "smoke", "--to", "1").exit_code == 0
    assert (notebooks.parent / "outputs" / "smoke" / "notebooks" / "01_teacher_distillation.ipynb").exists()


def test_the_kernel_is_the_python_of_udrl_whatever_kernelspecs_there_are(notebooks, outputs, tmp_path, monkeypatch):
    other = {"argv": ["false", "{connection_file}"], "display_name": "Other", "language": "python"}
    write_json(tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json", other)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    result = udrl("run", "--preset", "smoke", "--to", "1")
    assert result.exit_code == 0, result.output
    assert f"n_intents 200 {sys.executable}\n" in result.stdout


def test_a_new_workbook_holds_notebooks_and_presets_and_nothing_is_overwritten(tmp_path):
    assert udrl("new", str(tmp_path / "mine")).exit_code == 0
    for kind, folder in (("*.ipynb", "notebooks"), ("*.yaml", "notebooks/presets")):
        made = {file.name: file.read_bytes() for file in (tmp_path / "mine" / folder).glob(kind)}
        assert made == {file.name: file.read_bytes() for file in (ROOT / folder).glob(kind)} and made
    again = udrl("new", str(tmp_path / "mine"))
    assert again.exit_code == 2 and "exists and is not an empty folder" in again.stderr


def test_a_failing_notebook_stops_the_run(notebooks, outputs):
    file = notebooks / f"{NOTEBOOKS['02_annotated']}.ipynb"
    notebook = nbformat.read(file, as_version=4)
    notebook.cells[1].source = "raise ValueError('no such encoder')"
    nbformat.write(notebook, file)
    result = udrl("run", "--preset", "smoke")
    assert result.exit_code == 1
    assert result.stderr.startswith("02_reward_annotation failed after 0.")
    assert "ValueError: no such encoder" in result.stderr
    assert result.stderr.endswith(f"see {outputs / 'smoke' / 'notebooks' / file.name}\n")
    assert result.stderr.count("\n") == 1
    assert not (outputs / "smoke" / "notebooks" / "03_udrl_training.ipynb").exists()


def test_a_report_of_a_run_that_was_never_made_is_one_line(outputs):
    result = udrl("report", "nowhere")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert not outputs.exists()
