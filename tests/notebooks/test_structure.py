"""Every notebook reads like a chapter: short cells, prose before code, plain parameters, no outputs."""

from __future__ import annotations

import ast
import re
import symtable
from collections import Counter
from pathlib import Path

import nbformat
import papermill
import pytest

from udrl_utils.settings import NOTEBOOKS, ROOT, SETTINGS

FOLDER = ROOT / "notebooks"
FILES = sorted(FOLDER.glob("*.ipynb"))
STAGE_OF = {name: stage for stage, name in NOTEBOOKS.items()}
# name = value  # comment, with no other "=" or "#": papermill's help loses the line otherwise
PARAMETER = re.compile(r"(?P<name>[a-z_]+) = (?P<value>[^=#]+)  # (?P<comment>[^=#]{3,90})")
ABSOLUTE = re.compile(r"""["'](/|~/|[A-Za-z]:\\)\w""")

each_notebook = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def read(file: Path) -> nbformat.NotebookNode:
    return nbformat.read(file, as_version=4)


def code_of(file: Path) -> list[str]:
    return [cell.source for cell in read(file).cells if cell.cell_type == "code"]


def lines_of(source: str) -> list[str]:
    return [line for line in source.splitlines() if line.strip()]


def python_of(source: str) -> str:
    return "\n".join("" if line.lstrip().startswith("%") else line for line in source.splitlines())


def names_bound_by(source: str) -> set[str]:
    """Names that a cell assigns, imports, defines or loops over."""
    symbols = symtable.symtable(python_of(source), "cell", "exec").get_symbols()
    return {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}


def parameters_of(file: Path) -> list[str]:
    tagged = [cell for cell in read(file).cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1, "one cell is tagged parameters"
    assert tagged[0].cell_type == "code"
    return tagged[0].source.splitlines()


def test_every_stage_has_its_notebook():
    assert set(NOTEBOOKS.values()) <= {file.stem for file in FILES}


@each_notebook
def test_it_is_stripped(file):
    notebook = read(file)
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.kernelspec.language == "python"  # papermill asks for it
    assert "papermill" not in notebook.metadata
    for cell in notebook.cells:
        assert "papermill" not in cell.metadata
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@each_notebook
def test_it_opens_with_a_title_and_what_goes_in_and_out(file):
    first = read(file).cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert re.search(r"^\|[ :|-]+\|$", first.source, re.MULTILINE), "a table"
    assert re.search(r"^\|.*\b(inputs?|reads)\b", first.source, re.MULTILINE | re.IGNORECASE)
    assert re.search(r"^\|.*\b(outputs?|writes)\b", first.source, re.MULTILINE | re.IGNORECASE)


@each_notebook
def test_parameters_are_plain_literals_and_repeat_defaults_and_meanings(file):
    fields, names = SETTINGS[STAGE_OF[file.stem]].model_fields, []
    for line in parameters_of(file):
        match = PARAMETER.fullmatch(line)
        assert match, f"not `name = literal  # short comment`: {line}"
        name, value = match["name"], ast.literal_eval(match["value"])
        names.append(name)
        assert value == fields[name].default and isinstance(value, type(fields[name].default)), line
        assert match["comment"] == fields[name].description
    assert sorted(names) == sorted(fields)


@each_notebook
def test_a_parameter_is_bound_by_the_parameters_cell_alone(file):
    parameters = SETTINGS[STAGE_OF[file.stem]].model_fields.keys()
    for cell in read(file).cells:
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", []):
            assert not parameters & names_bound_by(cell.source), cell.source


@each_notebook
def test_papermill_shows_each_parameter_with_its_help(file):
    shown = papermill.inspect_notebook(str(file))
    assert len(shown) == len(parameters_of(file))
    assert all(parameter["help"] for parameter in shown.values())


@each_notebook
def test_cells_are_short(file):
    sizes = [len(lines_of(source)) for source in code_of(file)]
    assert len(sizes) <= 25
    assert sum(sizes) <= 220
    assert max(sizes) <= 30


@each_notebook
def test_logic_lives_in_the_package(file):
    for source in code_of(file):
        assert not re.search(r"^\s*[!%]\s*(pip|conda)\b|^\s*!", source, re.MULTILINE), source
        for node in ast.walk(ast.parse(python_of(source))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                assert node.end_lineno - node.lineno < 10, node.name


@each_notebook
def test_it_names_no_absolute_path(file):
    for source in code_of(file):
        assert not ABSOLUTE.search(source), source


def test_no_cell_stands_in_two_notebooks():
    cells = Counter()
    for file in FILES:
        cells.update({"\n".join(lines_of(source)) for source in code_of(file) if len(lines_of(source)) >= 3})
    assert not [source for source, count in cells.items() if count > 1]
