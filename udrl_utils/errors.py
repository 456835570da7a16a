"""Errors that a user can mend, each shown as one line, in notebooks too. Nothing here knows what went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake that the user can mend; shown as one line, in notebooks too."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


class SettingsError(UserError):
    """A parameter is unknown, mistyped or outside its range."""


class RunError(UserError):
    """The run folder cannot be used: a stage is missing, or was made with other settings."""


@contextmanager
def extra(name: str, wanted_by: str) -> Iterator[None]:
    """Import what an extra of the package brings. Raises: SettingsError when it is not installed."""
    try:
        yield
    except ImportError:
        raise SettingsError(f"{wanted_by} needs the {name} extra: pip install 'udrl_utils[{name}]'") from None


@contextmanager
def loading(otherwise: str) -> Iterator[None]:
    """Load a model that the user named. Raises: SettingsError, which says `otherwise` and why it cannot be loaded."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise SettingsError(f"{otherwise}: {str(error).strip().splitlines()[0]}") from None
