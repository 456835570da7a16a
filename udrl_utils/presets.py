"""What a run is told: a preset with its changes becomes the settings of every stage, checked before any work.

In go the name of a preset and `key=value` changes; out come settings by stage, or an error of one line. Files that the
settings name are read once here, so that a mistake in them is told early. Nothing here runs a notebook.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from udrl_utils.ablations import variants_of
from udrl_utils.baselines import FORM
from udrl_utils.errors import SettingsError
from udrl_utils.fields import FORMATS
from udrl_utils.notebooks import notebooks_folder
from udrl_utils.rewards import BUILT_IN
from udrl_utils.settings import DEFAULTS, NOTEBOOKS, SETTINGS, STAGES, resolve, wrong
from udrl_utils.tables import read_table
from udrl_utils.training import check_start


def stages_between(first: int, last: int) -> tuple[str, ...]:
    """Stages of notebooks first to last, counted from 1. Raises: SettingsError."""
    for option, number in (("from", first), ("to", last)):
        if not 1 <= number <= len(STAGES):
            raise SettingsError(f"parameter {option}={number} is not the number of a notebook, 1 to {len(STAGES)}")
    if last < first:
        raise SettingsError(f"parameter to={last} comes before from={first}")
    return STAGES[first - 1 : last]


def read_settings(preset: str, changes: list[str], name: str | None = None) -> dict[str, Any]:
    """Settings of every stage: defaults, a preset, `key=value` changes, a run name. Raises: SettingsError."""
    values = DEFAULTS | read_preset(preset)
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise SettingsError(f"parameter set={change!r} is not of the form key=value")
        values[key] = read_yaml(text, f"parameter {key}={text!r}") if text else ""
    if name is not None:
        values["run"] = name
    return {stage: resolve(cls, values) for stage, cls in SETTINGS.items()}


def read_preset(preset: str) -> dict[str, Any]:
    """Values of a preset, by name or path. Raises: SettingsError."""
    presets = notebooks_folder() / "presets"
    path = Path(preset) if preset.endswith((".yaml", ".yml")) else presets / f"{preset}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in presets.glob("*.yaml")))
        raise SettingsError(f"parameter preset={preset!r} is neither one of {known} nor the path of a YAML file")
    values = read_yaml(path.read_text(encoding="utf-8"), f"preset {preset}")
    if not isinstance(values, dict):
        raise SettingsError(f"preset {preset} does not hold lines of the form key: value")
    return {str(key): value for key, value in values.items()}


def read_yaml(text: str, what: str) -> Any:
    """Parsed YAML. Raises: SettingsError, one line."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{what} is not YAML ({' '.join(str(error).split())})") from None


def check_stages(settings: dict[str, Any], stages: Sequence[str]) -> None:
    """Check what the settings of the stages that are going to run say together, and the files that they name.

    Raises: SettingsError, one line that names the parameter, its value and what is allowed.
    """
    pairs, scored, training, analysis, _, search, _ = (settings[stage] for stage in STAGES)
    for stage in stages:
        settings[stage].check_tasks()
    if "02_annotated" in stages:
        notebook = (notebooks_folder() / f"{NOTEBOOKS['02_annotated']}.ipynb").read_text(encoding="utf-8")
        known = [*sorted(BUILT_IN), *re.findall(r"@reward\(\s*\\?[\"'](\w+)", notebook)]
        for name in scored.rewards:
            if name not in known:
                near = "".join(f"did you mean {close}? " for close in difflib.get_close_matches(name, known, 1))
                raise wrong(type(scored), "rewards", name, f"is unknown; {near}allowed are {', '.join(known)}")
    if "03_student" in stages:
        check_start(training, pairs.test_fraction)
    if "04_analysis" in stages:
        for text in analysis.baselines:
            if not FORM.fullmatch(text):
                form = "should be local:<model> or openai:<model>@<http address>"
                raise wrong(type(analysis), "baselines", text, form)
        variants_of(analysis)
    if "06_search" in stages:
        for part in search.search_command:
            if part.split()[0] not in scored.rewards:
                raise wrong(type(search), "search_command", part, f"should name one of rewards={scored.rewards}")
    read = (
        ("01_pairs", "intents", [pairs.intents_column]),
        ("01_pairs", "pairs", ["task", "intent", "prompt"]),
        ("04_analysis", "outside_intents", [analysis.outside_column]),
        ("06_search", "catalog", ["id", "title"]),
        ("06_search", "judgements", ["intent", "id", "grade"]),
    )
    for stage, name, columns in read:
        source = getattr(settings[stage], name)
        if stage in stages and is_file(source):
            read_table(source, columns)
    for stage, name in (("02_annotated", "encoder"), ("03_student", "base"), ("04_analysis", "fluency_model")):
        source = getattr(settings[stage], name)
        if stage in stages and source.startswith((".", "/", "~")) and not Path(source).exists():
            raise wrong(type(settings[stage]), name, source, "is no file or folder that is there")


def is_file(source: str) -> bool:
    """Whether a source is meant to be a file, and not a folder, a Hub data set or a word such as ontology."""
    path = Path(source)
    named = source.lower().removesuffix(".gz").endswith(FORMATS) or source.startswith((".", "/", "~"))
    return path.is_file() or (named and not path.is_dir())


def parameters_page() -> str:
    """docs/parameters.md: every parameter by notebook, with its default and what it means."""
    lines = [
        "# Parameters",
        "",
        "A preset in `notebooks/presets` holds what differs from these defaults; `laptop` takes them as they are.",
        "`udrl run --set name=value` changes one, and so does `papermill -p name value`. `make docs` makes this page.",
    ]
    shown: set[str] = set()
    for stage, cls in SETTINGS.items():
        lines += ["", f"## {stage}", "", "| parameter | default | meaning |", "|---|---|---|"]
        fields = {name: field for name, field in cls.model_fields.items() if name not in shown}
        lines += [f"| `{k}` | `{json.dumps(field.default)}` | {field.description} |" for k, field in fields.items()]
        shown |= fields.keys()
    return "\n".join(lines) + "\n"
