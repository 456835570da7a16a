"""The run folder: who works in it, what each stage was made from, and files that are complete or absent.

In go a stage's settings and what it writes; out come run.json, stamps and shards. Nothing here knows what a stage does.

One rule decides whether something made before is used again: beside it lies a stamp, which names the settings that
matter and holds a digest of all that was read. The same stamp means that making it again gives the same result.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from filelock import FileLock, Timeout

from udrl_utils.errors import RunError
from udrl_utils.machine import environment
from udrl_utils.settings import DEFAULTS, NOTEBOOKS, ROOT, SETTINGS, S, StageSettings, builds_on, resolve

if TYPE_CHECKING:
    import pandas as pd  # 80 MB, which a server does without
    import pyarrow

Stamp = dict[str, Any]
STAMP = "_stamp.json"  # pandas and pyarrow skip files that begin with _ when they read a folder


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
        self.nodes: list[dict[str, Any]] = []  # machines and versions of the workers, where a stage had some
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
        for earlier in settings.needs(stage):
            if earlier not in made:
                raise RunError(
                    f"run={self.name!r} has no {earlier} yet: run notebooks/{NOTEBOOKS[earlier]}.ipynb first"
                )
            self._same_settings(earlier, made[earlier]["settings"], settings._given)  # reads the run's tasks_file too
        settings.check_tasks()
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
        """Hold the run for this process until `finish` or `release`, or until the process ends for whatever reason.

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
        change = difference(*(stamp(resolve(SETTINGS[stage], dict(values))) for values in (before, asked)))
        if change:
            raise RunError(
                f"run={self.name!r}: {stage} was made with {change}; "
                f"run again from notebooks/{NOTEBOOKS[stage]}.ipynb, or choose another run name"
            )

    def finish(self, stage: str, settings: StageSettings, **facts: Any) -> None:
        """Record a finished stage in run.json, with its settings, figures and seconds."""
        self.reopen(stage)
        record = self.read() or {"run": self.name, "stages": {}}
        record["stages"][stage] = {
            "settings": settings.model_dump(mode="json"),
            "seconds": round(time.monotonic() - self._started, 1),
            **({"nodes": self.nodes} if self.nodes else {}),
            **facts,
        }
        record["stages"] = {name: record["stages"][name] for name in NOTEBOOKS if name in record["stages"]}
        record["environment"] = environment()
        write_json(self.path / "run.json", record)
        self.release()

    def reopen(self, stage: str) -> None:
        """Take a stage and those that build on it out of run.json: until it finishes, none of them may be built on."""
        record = self.read()
        made = record.get("stages", {})
        kept = {key: value for key, value in made.items() if key != stage and stage not in builds_on(key)}
        if kept != made:
            write_json(self.path / "run.json", {**record, "stages": kept})

    def release(self) -> None:
        """Let other processes make the run."""
        if self.path in self._held:
            self._held[self.path].release(force=True)

    def files(self, stage: str) -> list[dict[str, Any]]:
        """What a stage has written: path within the run, and size [kB]."""
        found = sorted(file for file in (self.path / stage).rglob("*") if file.is_file())
        return [
            {"file": str(file.relative_to(self.path)), "kB": round(file.stat().st_size / 1000, 1)} for file in found
        ]


def stamp(settings: StageSettings, files: Iterable[Path] = (), **values: Any) -> Stamp:
    """What a result is made from: {"settings": those that matter, "read": a digest of each file and value by name}.

    Settings in the model's HOW do not change a result and are left out. A value is a data frame or fits into JSON.
    """
    read = {file.name: digest(file) for file in files} | {name: digest(value) for name, value in values.items()}
    return {"settings": settings.model_dump(mode="json", exclude=set(settings.HOW)), "read": read}


def digest(value: Any) -> str:
    """Hash of a file's bytes, of a data frame's rows, or of a value as JSON."""
    import pandas as pd
    from pandas.util import hash_pandas_object

    if isinstance(value, Path):
        with value.open("rb") as content:
            return hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=12)).hexdigest()
    if isinstance(value, pd.DataFrame):
        hashes = hash_pandas_object(value, index=False)  # pyright: ignore[reportCallIssue]
        content = hashes.to_numpy().tobytes()
    else:
        content = json.dumps(value, sort_keys=True).encode()
    return hashlib.blake2b(content, digest_size=12).hexdigest()


def difference(before: Stamp | None, now: Stamp) -> str:
    """The first thing that two stamps differ in, such as "min_words=2, now min_words=3"; "" where they are the same."""
    if before is None:
        return "settings that it does not name"
    old, new = before["settings"], now["settings"]
    for name in new | old:
        if old.get(name, DEFAULTS.get(name)) != new.get(name):  # before a setting was there, its default held
            return f"{name}={old.get(name)!r}, now {name}={new.get(name)!r}"
    changed = [name for name in now["read"] | before["read"] if before["read"].get(name) != now["read"].get(name)]
    return f"other content of {changed[0]}" if changed else ""


def read_stamp(folder: Path) -> Stamp | None:
    """The stamp of a folder; None where it has none."""
    file = folder / STAMP
    return json.loads(file.read_text()) if file.exists() else None


def keep(folder: Path, now: Stamp) -> None:
    """Stamp a folder whose shards are costly. Raises: RunError when they were made from something else."""
    if shards_of(folder) and (change := difference(read_stamp(folder), now)):
        raise RunError(f"{folder} was made with {change}: choose another run name, or delete that folder")
    write_json(folder / STAMP, now)


def renew(folder: Path, now: Stamp, made: str = "*") -> None:
    """Stamp a folder whose content is cheap to make; content (the pattern `made`) from something else is removed first.

    One printed line says what has changed.
    """
    found = [path for path in folder.glob(made) if path.name != STAMP]
    if found and (change := difference(read_stamp(folder), now)):
        print(f"{folder.name} is made anew: it was made with {change}", flush=True)
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_json(folder / STAMP, now)


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    temporary.replace(path)


def write_shard(file: Path, table: pyarrow.Table, **notes: Any) -> None:
    """Write a shard under a temporary name and rename it, so that it is either complete or absent."""
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
    """Whether a shard is there and can be read. One that is incomplete or corrupt is set aside, to be made again."""
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


def read_shards(folder: Path, split: str | None = None, columns: list[str] | None = None) -> pd.DataFrame:
    """The rows of a folder's shards in one table: of one split or of all, all columns or some."""
    import pandas as pd

    filters = None if split is None else [("split", "==", split)]
    tables = [pd.read_parquet(file, columns=columns, filters=filters) for file in shards_of(folder)]
    return pd.concat(tables, ignore_index=True)
