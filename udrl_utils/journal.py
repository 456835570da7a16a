"""The journal: what was asked of a model, and what came back, kept as it comes, so that nothing is paid for twice."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any


class Journal:
    """Lines of JSON, one per attempt, appended and flushed at once: a process that is killed loses none of them.

    An attempt has a key (a hash of all that was asked), and either a reply with its tokens or an error.
    A last line that a kill cut in two is dropped when the file is opened again.
    """

    def __init__(self, file: Path):
        self.file, self.replies, self.usage = file, {}, Counter()
        if file.exists():
            self._read()

    def _read(self) -> None:
        whole = 0
        with self.file.open("rb") as lines:
            for line in lines:
                try:
                    entry = json.loads(line)
                    self._count(entry)
                except (ValueError, KeyError, TypeError):
                    if line.endswith(b"\n"):
                        self.usage["unreadable"] += 1
                        whole += len(line)
                    continue
                whole += len(line)
        if whole < self.file.stat().st_size:
            with self.file.open("r+b") as lines:
                lines.truncate(whole)

    def _count(self, entry: dict[str, Any]) -> None:
        if "reply" in entry:
            self.replies[entry["key"]] = entry["reply"]
            self.usage["tokens_in"] += entry["tokens_in"]
            self.usage["tokens_out"] += entry["tokens_out"]
        else:
            self.usage[f"failed_{entry['error']}"] += 1
        self.usage["requests"] += 1

    def add_reply(self, key: str, reply: str, tokens_in: int = 0, tokens_out: int = 0) -> None:
        """Keep a reply under the key of its question."""
        self._append({"key": key, "reply": reply, "tokens_in": tokens_in, "tokens_out": tokens_out})

    def add_failure(self, key: str, error: str) -> None:
        """Keep that an attempt failed, with a word that says how, such as 429 or timeout."""
        self._append({"key": key, "error": error})

    def _append(self, entry: dict[str, Any]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(entry, ensure_ascii=True) + "\n")
        self._count(entry)


def key_of(*parts: Any) -> str:
    """Key of a question: a hash of everything that shapes its answer."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=12).hexdigest()
