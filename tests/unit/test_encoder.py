"""The encoder gives the float32 vectors of Sentence-Transformers, whatever else is installed."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from udrl_utils import encoder
from udrl_utils.encoder import Encoder, encoder_path

TEXTS = ["koi pond", "", "Ünïcödé ﷽ 🦎", "word " * 400, "axolotl barista", "koi pond", "<s>[CLS]"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vectors_are_those_of_float32_on_any_processor(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    from sentence_transformers import SentenceTransformer

    monkeypatch.setattr(encoder, "device_and_dtype", lambda: ("cpu", dtype, "as this test says"))
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    vectors = Encoder("minilm")(TEXTS)
    plain = SentenceTransformer(encoder_path("minilm"), device="cpu").encode(TEXTS, normalize_embeddings=True)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, plain, atol=1e-5)


def test_each_text_is_embedded_once_and_forgotten_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, embed = [], Encoder("minilm")
    monkeypatch.setattr(embed, "_compute", lambda texts: asked.extend(texts) or np.ones((len(texts), 2)))
    assert embed(["a", "b", "a"]).shape == (3, 2)
    embed(["b", "c"])
    assert asked == ["a", "b", "c"]
    embed.forget()
    embed(["a"])
    assert asked == ["a", "b", "c", "a"]


def test_a_text_of_which_an_encoder_reads_nothing_is_like_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    embed = Encoder("minilm")
    monkeypatch.setattr(embed, "_compute", lambda texts: np.array([[len(text), 0.0] for text in texts]))
    assert embed(["", "koi"]).tolist() == [[0, 0], [1, 0]]
