"""From a notebook's parameters to the settings of its stage, before any work starts.

A parameters cell holds plain literals; `resolve` turns them into one strict, frozen settings object and refuses
whatever it does not know.
"""

from __future__ import annotations

import difflib
import json
from typing import Any, TypeVar

from pydantic import ValidationError

from udrl_utils.errors import SettingsError
from udrl_utils.settings import SETTINGS, StageSettings

KNOWN = {name for cls in SETTINGS.values() for name in cls.model_fields}
S = TypeVar("S", bound=StageSettings)


def resolve(cls: type[S], namespace: dict[str, Any]) -> S:
    """Settings of one stage out of a notebook's namespace (`globals()`) or a plain dict.

    Parameters of other stages may be there, so that one preset drives all notebooks. Any other plain
    literal is a mistyped parameter. A second call in the same kernel does not look for those again: by
    then the names may be the user's own.

    Raises: SettingsError, one line that names the parameter, its value and what is allowed.
    """
    literals = (str, int, float, bool, list, dict, type(None))
    given = {
        name: value
        for name, value in namespace.items()
        if type(value) in literals and name.islower() and not name.startswith("_")
    }
    if "_settings_resolved" not in namespace:
        for name in sorted(given.keys() - KNOWN):
            close = difflib.get_close_matches(name, KNOWN, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; allowed are {', '.join(sorted(KNOWN))}"
            raise SettingsError(f"unknown parameter {name}={given[name]!r}{hint}")
    try:
        settings = cls(**{name: value for name, value in given.items() if name in cls.model_fields})
    except ValidationError as error:
        raise SettingsError(explain(error, cls)) from None
    settings._given = {name: value for name, value in given.items() if name in KNOWN}
    namespace["_settings_resolved"] = True
    return settings


def explain(error: ValidationError, cls: type[StageSettings]) -> str:
    """First problem of a validation error, in one line."""
    problem = error.errors()[0]
    name = str(problem["loc"][0])
    if problem["type"] == "missing":
        return f"missing parameter {name} ({cls.model_fields[name].description})"
    what = problem["msg"].removeprefix("Input ").removeprefix("String ").removeprefix("Value error, ")
    return f"parameter {name}={problem['input']!r} {what} ({cls.model_fields[name].description})"


def parameters_page(values: dict[str, Any]) -> str:
    """docs/parameters.md: every parameter by notebook, with its value in a preset and what it means."""
    lines = [
        "# Parameters",
        "",
        "The laptop preset's values. `udrl run --set name=value` changes one, `papermill -p name value` too.",
        "This page is made by `make docs`.",
    ]
    told: set[str] = set()
    for stage, cls in SETTINGS.items():
        fields = {name: field for name, field in cls.model_fields.items() if name not in told}
        told |= fields.keys()
        lines += ["", f"## {stage}", "", "| parameter | laptop | meaning |", "|---|---|---|"]
        lines += [f"| `{k}` | `{json.dumps(values[k])}` | {field.description} |" for k, field in fields.items()]
    return "\n".join(lines) + "\n"
