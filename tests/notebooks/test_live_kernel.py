"""A living kernel: every notebook runs a second time in it, a changed parameter counts, a mistyped one is reported."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from udrl_utils.settings import NOTEBOOKS, ROOT, SETTINGS

SMOKE = yaml.safe_load((ROOT / "notebooks" / "presets" / "smoke.yaml").read_text())
CHANGES = {  # of each stage; pairs are written once in a run, so other pairs need another run
    "01_pairs": {"run": "other", "n_intents": 150},
    "02_annotated": {"rewards": ["length", "relevance", "diversity", "commas"]},
    "03_student": {"epochs": 0.5, "rounds": 0},
    "04_analysis": {"analysis_intents": 2},
    "05_probes": {"probe_prompts": 1},
    "06_search": {"search_prompts": 4},
    "07_deployment": {"precisions": ["int8"]},
}


class Kernel:
    """A kernel that runs cells of one notebook."""

    def __init__(self, stage: str, client: NotebookClient):
        self.client, self.cells = client, client.nb.cells
        self.parameters = next(cell for cell in self.cells if "parameters" in cell.metadata.get("tags", []))
        self.change(**{name: SMOKE[name] for name in SETTINGS[stage].model_fields.keys() & SMOKE.keys()})

    def change(self, **values: object) -> None:
        """Edit the parameters cell."""
        for name, value in values.items():
            line = f"{name} = {value!r}"
            self.parameters.source = re.sub(rf"^{name} = .*$", lambda _: line, self.parameters.source, flags=re.M)  # noqa: B023
            assert line in self.parameters.source

    def run(self) -> None:
        """Run all cells from the parameters cell on. Raises: CellExecutionError."""
        start = self.cells.index(self.parameters)
        for place, cell in enumerate(self.cells):
            if place >= start and cell.cell_type == "code":
                self.client.execute_cell(cell, place)

    def value(self, expression: str) -> object:
        """What an expression is in the kernel."""
        cell = nbformat.v4.new_code_cell(f"print(repr({expression}))")
        self.client.nb.cells.append(cell)
        self.client.execute_cell(cell, len(self.cells) - 1)
        return eval(self.cells.pop().outputs[0].text)


@contextmanager
def living(stage: str) -> Iterator[Kernel]:
    notebook = nbformat.read(ROOT / "notebooks" / f"{NOTEBOOKS[stage]}.ipynb", 4)
    client = NotebookClient(notebook, timeout=600, kernel_name="python3")
    with client.setup_kernel():
        yield Kernel(stage, client)


@pytest.mark.slow
@pytest.mark.parametrize("stage", NOTEBOOKS)
def test_a_notebook_runs_again_after_a_change(
    stage: str, smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(smoke_run, tmp_path / "smoke")
    monkeypatch.setenv("UDRL_OUTPUTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    changes = CHANGES[stage]
    with living(stage) as kernel:
        kernel.run()
        kernel.change(**changes)
        kernel.run()
        assert {name: kernel.value(f"settings.{name}") for name in changes} == changes
        assert kernel.value("folder.read()['stages']")[stage]["settings"].items() >= changes.items()
        name = list(changes)[-1]
        kernel.parameters.source = kernel.parameters.source.replace(f"\n{name} = ", f"\n{name}x = ")
        told = f"unknown parameter {name}x={changes[name]!r}; did you mean {name}?"
        for _ in range(2):
            with pytest.raises(CellExecutionError):
                kernel.run()
            [error] = [one for cell in kernel.cells for one in cell.get("outputs", []) if one.output_type == "error"]
            assert error.traceback == [f"SettingsError: {told}"]
