"""The run folder: who works in it, what each stage was told, and files that are whole or not there."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas
from filelock import FileLock, Timeout

from udrl_utils.machine import environment
from udrl_utils.settings import NOTEBOOKS, ROOT, SETTINGS, RunError, S, StageSettings, builds_on, resolve

if TYPE_CHECKING:
    import pyarrow


def workbook() -> Path:
    """Folder that has `notebooks/`: the working directory, the one above it, or the checkout; else the working one."""
    here = Path.cwd()
    return next((home for home in (here, here.parent, ROOT) if (home / "notebooks" / "presets").is_dir()), here)


def outputs_root() -> Path:
    """`outputs/` of the workbook, or UDRL_OUTPUTS."""
    return Path(os.environ.get("UDRL_OUTPUTS", workbook() / "outputs")).resolve()


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


def write_shard(file: Path, table: pyarrow.Table, **notes: Any) -> None:
    """Write a shard under a temporary name and rename it, so that it is there whole or not at all."""
    import pyarrow.parquet as pq

    metadata = {name: json.dumps(value, sort_keys=True) for name, value in notes.items()}
    temporary = file.with_suffix(".tmp")
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **metadata})
    pq.write_table(table, temporary, write_page_checksum=True)
    temporary.replace(file)


def read_note(file: Path, name: str) -> Any:
    """A note that a shard was written with; None where it has none of that name."""
    import pyarrow.parquet as pq

    note = (pq.read_schema(file).metadata or {}).get(name.encode())
    return None if note is None else json.loads(note)


def is_sound(file: Path) -> bool:
    """Whether a shard is there and whole. One that is torn or corrupt is set aside, to be made again."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not file.exists():
        return False
    try:
        pq.read_table(file, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        aside = file.with_name(f"_{file.stem}.corrupt")
        print(
            f"{file.name} is corrupt ({str(error).splitlines()[0]}): set aside as {aside.name}, made again", flush=True
        )
        file.replace(aside)
        return False
    return True


def shards_of(folder: Path) -> list[Path]:
    """The shards of a folder, in order."""
    return sorted(folder.glob("part-*.parquet"))


def read_shards(folder: Path, split: str | None = None, columns: list[str] | None = None) -> pandas.DataFrame:
    """The rows of a folder's shards in one table: of one split or of all, all columns or some."""
    filters = None if split is None else [("split", "==", split)]
    tables = [pandas.read_parquet(file, columns=columns, filters=filters) for file in shards_of(folder)]
    return pandas.concat(tables, ignore_index=True)
