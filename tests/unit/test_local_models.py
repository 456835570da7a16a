"""Language models from a file or a folder: what cannot be loaded costs one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from udrl_utils.errors import SettingsError
from udrl_utils.gpt2 import BASES
from udrl_utils.local_models import load_causal_lm
from udrl_utils.settings import ROOT


def refused(model: Path | str) -> str:
    with pytest.raises(SettingsError) as caught:
        load_causal_lm(str(model))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_also_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (BASES["copying"], BASES["copying"].relative_to(ROOT)):
        model, tokenizer = load_causal_lm(str(name))
        assert model.config.model_type == "gpt2" and not model.training
        assert tokenizer("koi pond").input_ids


def test_a_missing_file_and_one_that_is_no_gguf(tmp_path: Path) -> None:
    assert "there is no file" in refused(tmp_path / "nowhere.gguf")
    (tmp_path / "page.gguf").write_text("<html>not found</html>")
    assert "is not a GGUF file" in refused(tmp_path / "page.gguf")
    (tmp_path / "empty.gguf").touch()
    assert "is not a GGUF file" in refused(tmp_path / "empty.gguf")
    (tmp_path / "folder").mkdir()
    assert "cannot be loaded" in refused(tmp_path / "folder")


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
