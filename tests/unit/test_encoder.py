"""The encoder gives the vectors of Sentence-Transformers, whatever computes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from udrl_utils import encoder
from udrl_utils.encoder import PROBES, Encoder, encoder_path

TEXTS = ["koi pond", "", "Ünïcödé ﷽ 🦎", "word " * 400, "axolotl barista", "koi pond", "<s>[CLS]"]


@pytest.fixture(scope="module")
def plain():
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(encoder_path("minilm"), device="cpu")


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that computes in float32."""
    monkeypatch.setattr(encoder, "device_and_dtype", lambda: ("cpu", torch.float32, "no GPU"))


def cosines(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)


def test_the_machines_own_way_agrees(plain) -> None:
    vectors = Encoder("minilm")(TEXTS)
    assert vectors.dtype == np.float32 and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    near = cosines(vectors, plain.encode(TEXTS))
    assert min(cosine for cosine, text in zip(near, TEXTS, strict=True) if text) > 0.99
    assert cosines(Encoder("minilm")(PROBES), plain.encode(list(PROBES))).mean() > 0.995


def test_ctranslate2_agrees_in_8_bits(plain, float32: None, capsys: pytest.CaptureFixture) -> None:
    threads = torch.get_num_threads()
    assert cosines(Encoder("minilm")(PROBES), plain.encode(list(PROBES))).min() > 0.995
    assert "by CTranslate2 in int8_float32, mean cosine 0.99" in capsys.readouterr().out
    assert torch.get_num_threads() == threads, "PyTorch computes on as many threads as before"


def test_where_8_bits_disagree_it_is_float32(
    plain, float32: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(encoder.FASTER, "int8_float32", 0.9999)
    assert cosines(Encoder("minilm")(TEXTS), plain.encode(TEXTS)).min() > 0.99999
    assert "by CTranslate2 in float32" in capsys.readouterr().out


def test_without_the_extra_it_is_pytorch(
    plain, float32: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ctranslate2", None)
    assert cosines(Encoder("minilm")(TEXTS), plain.encode(TEXTS)).min() > 0.99999
    assert "by PyTorch" in capsys.readouterr().out


def test_a_model_that_pools_otherwise_is_left_to_pytorch(
    plain, float32: None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    words = Transformer(encoder_path("minilm"))
    first = SentenceTransformer(modules=[words, Pooling(384, pooling_mode="cls")], device="cpu")
    first.save(str(tmp_path / "cls"))
    assert cosines(Encoder(str(tmp_path / "cls"))(TEXTS), first.encode(TEXTS)).min() > 0.99999
    assert "by PyTorch" in capsys.readouterr().out


def test_each_text_is_embedded_once_and_forgotten_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, embed = [], Encoder("minilm")
    monkeypatch.setitem(vars(embed), "_compute", lambda texts: asked.extend(texts) or np.ones((len(texts), 2)))
    assert embed(["a", "b", "a"]).shape == (3, 2)
    embed(["b", "c"])
    assert asked == ["a", "b", "c"]
    embed.forget()
    embed(["a"])
    assert asked == ["a", "b", "c", "a"]
