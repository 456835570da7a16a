"""The tasks: kinds of prompt, and how a teacher is asked for each.

In go YAML files of tasks, the package's own or the user's; out come tasks by name. Nothing here knows a teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import regex
import yaml

from udrl_utils.errors import SettingsError

DATA = Path(__file__).parent / "data"
LENGTHS = ("4 to 9", "10 to 20", "22 to 40")  # words of a short, a medium and a long prompt, where a task names none


@cache
def load_data(name: str) -> Any:
    """One of the package's YAML files, by its name without ending."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load((DATA / f"{name}.yaml").read_text(encoding="utf-8"), Loader=loader)


@dataclass(frozen=True)
class Task:
    """One kind of prompt, and how a teacher is asked for it."""

    name: str
    title: str
    modality: str
    definition: str
    list: str  # how several prompts are asked for at once
    single: str  # how a single prompt is asked for
    lengths: tuple[str, ...]  # words of a short, a medium and a long prompt, such as "4 to 8"
    examples: tuple[tuple[str, tuple[str, ...]], ...]  # an intent, and a prompt of each length


TASKS: dict[str, Task] = {}  # the shipped tasks, and those of the tasks_file that was read last


def add_tasks(file: str | Path) -> list[str]:
    """Register the tasks of a YAML file, in place of earlier ones of the same name. Returns their names.

    Raises: SettingsError when the file cannot be read, or a task lacks something or has an unknown field.
    """
    source = f"parameter tasks_file={str(file)!r}"
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{source} cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{source} is not YAML ({' '.join(str(error).split())})") from None
    if isinstance(content, list) and all(isinstance(fields, dict) for fields in content):
        content = {fields.get("name"): {k: v for k, v in fields.items() if k != "name"} for fields in content}
    if not isinstance(content, dict) or not content:
        raise SettingsError(f"{source} should hold tasks by their names, as udrl_utils/data/tasks.yaml does")
    found = {name: _task(source, name, fields) for name, fields in content.items()}
    TASKS.update(found)
    return list(found)


def _task(source: str, name: Any, fields: Any) -> Task:
    """A task from the fields of a file. Raises: SettingsError."""
    if not regex.fullmatch(r"[a-z][a-z0-9_]*", str(name)):
        raise SettingsError(f"{source}: a task's name should be like product_description, not {name!r}")
    where, fields = f"{source}: task {name}", fields if isinstance(fields, dict) else {}
    optional = {
        "title": name.replace("_", " "),
        "modality": "text",
        "list": fields.get("instruction"),
        "lengths": LENGTHS,
    }
    needed = ("definition", "instruction", "examples")
    for field in needed:
        if not fields.get(field):
            raise SettingsError(
                f"{where} has no {field}; it needs {', '.join(needed)}, and may have {', '.join(optional)}"
            )
    unknown = fields.keys() - {*needed, *optional}
    if unknown:
        raise SettingsError(
            f"{where} has an unknown field {min(unknown)!r}; allowed are {', '.join((*needed, *optional))}"
        )
    values = optional | {key: value for key, value in fields.items() if key not in ("instruction", "examples")}
    sizes = values["lengths"] = tuple(map(str, values["lengths"]))
    try:
        examples = tuple((str(each["intent"]), tuple(map(str, each["prompts"]))) for each in fields["examples"])
    except (TypeError, KeyError):
        raise SettingsError(f"{where}: each of its examples should have an intent and prompts") from None
    if len(examples) < 3 or any(len(prompts) != len(sizes) for _, prompts in examples):
        wanted = f"at least 3 examples, each with {len(sizes)} prompts, of {', '.join(sizes)} words"
        raise SettingsError(f"{where} should have {wanted}")
    return Task(name=name, single=fields["instruction"], examples=examples, **values)


add_tasks(DATA / "tasks.yaml")
