"""Types of settings that check themselves: names of tasks, and what must hold no secret; formats of tables.

In go values of settings; out come the same values, which may be stored and shown. An error never shows a secret.
"""

from __future__ import annotations

import re
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator

from udrl_utils.tasks import TASKS, add_tasks

FORMATS = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".parquet", ".xlsx")  # of tables that are read
NAMED = " or ".join([", ".join(ending[1:] for ending in FORMATS[:-1]), FORMATS[-1][1:]])
KEYS = "keys come from the environment variable OPENAI_API_KEY"
SECRET_NAME = r"(^|[._-])key$|api.?key|authori[sz]ation|password|secret|bearer|(^|[._-]|access|auth)token$"
SECRET_VALUE = r"(sk|pk|hf|gsk|xai|nvapi)[-_]\w|Bearer "


class Secret(ValueError):
    """A value holds what may be a secret: an error does not show it."""


def without_secrets(urls: list[str]) -> list[str]:
    """Addresses that may be shown and stored. Raises: ValueError for others."""
    for url in urls:
        parts = urlsplit(url)
        if parts.username or parts.password or parts.query or parts.fragment:
            raise Secret("should hold addresses without a user, a password or anything after '?'; " + KEYS)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("should hold http(s) addresses without a password; " + KEYS)
    return urls


def without_keys(request: dict[str, Any]) -> dict[str, Any]:
    """Fields of a request that may be stored. Raises: ValueError for secrets, and for what other parameters say."""
    for name, value in request.items():
        if name in ("model", "messages", "n", "stream"):
            raise ValueError(f"should not hold {name}: the workbook sets it")
        if re.search(SECRET_NAME, name, re.I) or (isinstance(value, str) and re.match(SECRET_VALUE, value)):
            raise Secret(f"should not hold {name}: {KEYS}")
        if isinstance(value, dict):
            without_keys({f"{name}.{inner}": part for inner, part in value.items()})
    return request


def without_secrets_in(baselines: list[str]) -> list[str]:
    """Baselines that may be stored. Raises: ValueError for an address with a user, a password or a query."""
    if any(re.search(r"://[^/]*@|[?#]", text) for text in baselines):
        raise Secret("should hold addresses without a user, a password or anything after '?'; " + KEYS)
    return baselines


def known_task(name: str) -> str:
    """A task of the package or of tasks_file. Raises: ValueError for another name."""
    if name not in TASKS:
        *others, last = map(repr, TASKS)
        raise ValueError(f"should be {', '.join(others)} or {last}")
    return name


def registered(file: str) -> str:
    """The name of a file of tasks, which are known from now on. Raises: SettingsError when it cannot be read."""
    if file:
        add_tasks(file)
    return file


TaskName = Annotated[str, AfterValidator(known_task)]
TasksFile = Annotated[str, AfterValidator(registered)]
Addresses = Annotated[list[str], AfterValidator(without_secrets)]
RequestFields = Annotated[dict[str, Any], AfterValidator(without_keys)]
Baselines = Annotated[list[str], AfterValidator(without_secrets_in)]
