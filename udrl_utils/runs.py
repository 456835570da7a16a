"""The run folder: one sub-folder per stage, what each was made with, and one maker at a time."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock, Timeout

from udrl_utils.errors import RunError
from udrl_utils.machine import environment
from udrl_utils.parameters import S, resolve
from udrl_utils.settings import NOTEBOOKS, ROOT, SETTINGS, StageSettings, builds_on


def outputs_root() -> Path:
    """`outputs/` of the checkout; of the working directory when the package is installed elsewhere."""
    home = ROOT if (ROOT / "pyproject.toml").exists() else Path.cwd()
    return Path(os.environ.get("UDRL_OUTPUTS", home / "outputs")).resolve()


class RunFolder:
    """`outputs/<run>`: one sub-folder per stage, and run.json, which says how each was made."""

    _held: ClassVar[dict[Path, FileLock]] = {}  # locks of this process; the system frees them when it ends

    def __init__(self, name: str | Path):
        self.path = Path(name) if isinstance(name, Path) else outputs_root() / name
        self.name = self.path.name
        self._started = time.monotonic()

    def __truediv__(self, part: str) -> Path:
        return self.path / part

    def read(self) -> dict[str, Any]:
        """Content of run.json; empty before the first stage has finished."""
        file = self.path / "run.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def settings(self, cls: type[S]) -> S:
        """Settings that a finished stage was made with."""
        stage = next(stage for stage, kind in SETTINGS.items() if kind is cls)
        return resolve(cls, dict(self.read()["stages"][stage]["settings"]))

    def start(self, stage: str, settings: StageSettings) -> RunFolder:
        """Check that the stage can be made: the folder is writable and what it builds on is there.

        A stage that asks the shipped student builds on nothing.

        Raises: RunError, one line that names the notebook or the parameter to mend.
        """
        made = self.read().get("stages", {})
        for earlier in () if getattr(settings, "student", "") else builds_on(stage):
            if earlier not in made:
                raise RunError(
                    f"run={self.name!r} has no {earlier} yet: run notebooks/{NOTEBOOKS[earlier]}.ipynb first"
                )
            self._same_settings(earlier, made[earlier]["settings"], settings._given)
        try:
            (self.path / stage).mkdir(parents=True, exist_ok=True)
            probe = self.path / stage / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise RunError(f"run={self.name!r}: cannot write to {self.path / stage} ({error.strerror})") from None
        self.lock()
        return self

    def lock(self) -> None:
        """Hold the run for this process until `finish` or `release`, or until the process ends, however it ends.

        Raises: RunError when another process holds it.
        """
        held = self._held.setdefault(self.path, FileLock(self.path / ".lock", thread_local=False))
        try:
            held.acquire(timeout=0)
        except Timeout:
            raise RunError(
                f"run={self.name!r} is being made by another process, maybe a notebook that is still open: "
                "wait for it, shut it down, or choose another run name"
            ) from None

    def _same_settings(self, stage: str, before: dict[str, Any], now: dict[str, Any]) -> None:
        # Compared as that stage reads them: YAML's 2e-3 arrives as a string.
        asked = {**before, **{name: now[name] for name in before.keys() & now.keys()}}
        asked = resolve(SETTINGS[stage], asked).model_dump(mode="json")
        for name in (name for name in before if name not in SETTINGS[stage].HOW):
            if before[name] != asked[name]:
                raise RunError(
                    f"run={self.name!r}: {stage} was made with {name}={before[name]!r}, now {name}={asked[name]!r}; "
                    f"run again from notebooks/{NOTEBOOKS[stage]}.ipynb, or choose another run name"
                )

    def finish(self, stage: str, settings: StageSettings, **facts: Any) -> None:
        """Record a finished stage in run.json, with its settings, figures and seconds."""
        record = self.read() or {"run": self.name, "stages": {}}
        record["stages"] = {key: value for key, value in record["stages"].items() if stage not in builds_on(key)}
        record["stages"][stage] = {
            "settings": settings.model_dump(mode="json"),
            "seconds": round(time.monotonic() - self._started, 1),
            **facts,
        }
        record["environment"] = environment()
        write_json(self.path / "run.json", record)
        self.release()

    def release(self) -> None:
        """Let other processes make the run."""
        if self.path in self._held:
            self._held[self.path].release(force=True)

    def files(self, stage: str) -> list[dict[str, Any]]:
        """What a stage has written: path within the run, and size."""
        found = sorted(file for file in (self.path / stage).rglob("*") if file.is_file())
        return [
            {"file": str(file.relative_to(self.path)), "kB": round(file.stat().st_size / 1000, 1)} for file in found
        ]


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    temporary.replace(path)
