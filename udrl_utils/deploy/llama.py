"""llama.cpp: a GPT-2 written as a GGUF file of 8-bit weights, and read from one, for one text at a time."""

from __future__ import annotations

import json
import queue
import secrets
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udrl_utils.settings import RunError, extra

if TYPE_CHECKING:
    import numpy

BLOCK = 32  # weights that share a scale in Q8_0; rows must be whole blocks


def write_gguf(student: Path, file: Path) -> None:
    """Write a student's folder as one GGUF file, matrices as Q8_0, which llama.cpp and what builds on it can load.

    Raises: SettingsError without the deploy extra; RunError for a model that is no GPT-2, or of an odd width.
    """
    gguf = import_gguf()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(student), AutoTokenizer.from_pretrained(student)
    config = model.config
    if config.model_type != "gpt2" or config.n_embd % BLOCK:
        raise RunError(
            f"precision 'q8_0' takes a GPT-2 of a width that is a multiple of {BLOCK}; "
            f"this is a {config.model_type} of width {config.hidden_size}"
        )
    writer = gguf.GGUFWriter(file, "gpt2")
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    _add_vocabulary(writer, tokenizer, config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config.n_layer)
    for name, values in _tensors(model):
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if values.ndim == 2 and name != "transformer.wpe.weight":
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(new, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(new, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: Any, tokenizer: Any, size: int) -> None:
    gguf, vocabulary, special = import_gguf(), tokenizer.get_vocab(), set(tokenizer.get_added_vocab())
    tokens = sorted(vocabulary, key=vocabulary.get)
    tokens += [f"<|unused:{k}|>" for k in range(len(tokens), size)]
    kinds = (gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(list(kinds))
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokenizer.eos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)


def _tensors(model: Any) -> Iterator[tuple[str, numpy.ndarray]]:
    """Weights by name, matrices as (out, in); a head that is tied to the embeddings is left out."""
    from transformers.pytorch_utils import Conv1D

    for module_name, module in model.named_modules():
        for name, values in module.named_parameters(module_name, recurse=False):
            values = values.detach().float()
            yield name, (values.T if isinstance(module, Conv1D) and values.ndim == 2 else values).contiguous().numpy()


class LlamaCpp:
    """A GGUF file, loaded. Texts are written one after the other: so one seed gives one text."""

    def __init__(self, file: Path, positions: int, threads: int):
        """`positions`: tokens of the context; `threads`: 0 for as many as cores."""
        with extra("deploy", "precision 'q8_0'"):
            import xllamacpp
        how = xllamacpp.CommonParams()
        how.model.path, how.n_ctx, how.n_parallel, how.warmup, how.verbosity = str(file), positions, 1, False, 0
        how.cache_ram_mib = 0  # else it keeps all that it has read, up to gigabytes, and looks through that each time
        if threads:
            how.cpuparams.n_threads = how.cpuparams_batch.n_threads = threads
        how.api_keys = [secrets.token_hex()]  # it listens on loopback too, where nobody is to be answered
        self._server = xllamacpp.Server(how)
        self.write([0], most=1)  # a server that is given up before its loop has begun waits for its own end for ever

    def write(self, ids: Sequence[int], most: int, **sampling: float) -> str:
        """What follows tokens, up to `most` tokens of it; special tokens are left out."""
        return "".join(self.stream(ids, most, **sampling))

    def stream(self, ids: Sequence[int], most: int, **sampling: float) -> Iterator[str]:
        """The same, piece by piece."""
        asked = {"prompt": list(ids), "n_predict": most, "cache_prompt": False, "stream": True, **sampling}
        pieces: queue.SimpleQueue[dict | None] = queue.SimpleQueue()

        def ask() -> None:
            try:
                self._server.handle_completions(asked, pieces.put)
            except Exception as error:  # of the library, in a thread of its own: told where the pieces are read
                pieces.put({"error": str(error)})
            pieces.put(None)

        threading.Thread(target=ask, daemon=True).start()
        for piece in iter(pieces.get, None):
            if "choices" not in piece:
                raise RunError(f"llama.cpp cannot go on: {json.dumps(piece)[:200]}")
            yield piece["choices"][0]["text"]


def import_gguf() -> Any:
    """The library that writes GGUF files. Raises: SettingsError when it is not installed."""
    with extra("deploy", "precision 'q8_0'"):
        import gguf
    return gguf
