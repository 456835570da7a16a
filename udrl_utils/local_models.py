"""Causal language models on this machine.

In goes the name of a model: a GGUF file, a folder or a Hub id. Out come the model and its tokenizer, loaded by
transformers. This file does not know what the model is for, nor on which device it is to compute.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

from udrl_utils.errors import SettingsError, extra, loading
from udrl_utils.machine import device_and_dtype
from udrl_utils.settings import ROOT

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def located(model: str) -> Path:
    """Where a model's file or folder is: as named, or else from the checkout's root."""
    return Path(model) if Path(model).exists() else ROOT / model


def load_causal_lm(model: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model, on the CPU and in the number format of this machine, and its tokenizer.

    `model`: a GGUF file, a Hugging Face folder (relative paths also from the checkout's root) or a Hub id.
    Raises: SettingsError, one line, when the file is missing or torn, or when transformers cannot read the model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place, source = located(model), {}
    if place.suffix == ".gguf":
        if not place.is_file():
            raise SettingsError(f"there is no file {model!r}")
        with place.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise SettingsError(f"{model!r} is not a GGUF file: it does not begin with GGUF")
        with extra("deploy", f"{model!r}"):
            import gguf  # noqa: F401  (transformers reads the file with it)
        place, source = place.parent, {"gguf_file": place.name}
    name = str(place) if place.exists() else model
    try:
        with loading(f"{model!r} cannot be loaded as a causal language model"):
            tokenizer = AutoTokenizer.from_pretrained(name, **source)
            loaded = AutoModelForCausalLM.from_pretrained(name, dtype=device_and_dtype()[1], **source)
    except struct.error:
        raise SettingsError(f"{model!r} ends too early: fetch the file again") from None
    return loaded, tokenizer
