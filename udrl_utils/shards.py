"""Shards: tables in parquet files `part-*.parquet` of a folder, written whole, with notes, checked when read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas
    import pyarrow


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
    import pandas

    filters = None if split is None else [("split", "==", split)]
    tables = [pandas.read_parquet(file, columns=columns, filters=filters) for file in shards_of(folder)]
    return pandas.concat(tables, ignore_index=True)
