"""What an engine costs: seconds until it answers, prompts per second, memory; beside models of other sizes.

Engines and requests go in, figures come out, in SI units unless a name says otherwise. Quality is measured elsewhere.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import cycle, islice
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from udrl_utils.commands import Command
from udrl_utils.deploy.export import DeployedStudent
from udrl_utils.engine import Engine
from udrl_utils.errors import loading
from udrl_utils.evaluation import interval
from udrl_utils.machine import device_and_dtype
from udrl_utils.settings import DeploymentSettings
from udrl_utils.student import Student

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    Decode = Callable[[int, int], None]  # how many texts at once, how many tokens of each

COLD = """
import json, sys, time
began = time.perf_counter()
since = lambda: time.perf_counter() - began
from {module} import {engine}
from udrl_utils.commands import Command
engine = {engine}.load(sys.argv[1])
took = {{"load_s": since()}}
pieces = engine.stream("koi pond", Command(next(iter(engine.codec.edges)), length=min(12, engine.codec.longest)))
next(pieces, "")
took["first_word_s"] = since()
list(pieces)
took["first_prompt_s"] = since()
from udrl_utils.machine import peak_memory
print(json.dumps({{**took, "memory_mb": peak_memory() / 1e6}}))
"""
READ, WRITTEN = 16, 32  # tokens of a request to a language model: read, and written
WHOLE = 5e8  # parameters up to which a model with random weights gets all its weights

# Llama 3 8B (arXiv 2407.21783, table 3), Llama 3.2 1B and GPT-2, as their configurations on the hub have them.
LLAMA = {"model_type": "llama", "vocab_size": 128256, "num_attention_heads": 32, "num_key_value_heads": 8}
SHAPES: dict[str, dict[str, Any]] = {
    "8B": {**LLAMA, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
    "1B": {
        **LLAMA,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "tie_word_embeddings": True,
    },
    "124M": {"model_type": "gpt2"},
}


def cold_start(engine: Engine) -> dict[str, float]:
    """Time from the start of a new process until it has loaded an engine, written a first word and a first prompt [s];
    its peak memory [MB]."""
    program = COLD.format(module=type(engine).__module__, engine=type(engine).__name__)
    done = subprocess.run(
        [sys.executable, "-c", program, str(engine.folder)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def costs(
    engines: dict[str, Engine], requests: Sequence[tuple[str, Command]], settings: DeploymentSettings
) -> dict[str, dict[str, Any]]:
    """For each engine: cold start, weights [MB], latency of one prompt [s], prompts per second by batch size."""
    found = {}
    for name, engine in engines.items():
        turns = islice(cycle(requests), settings.latency_requests + 1)
        seconds = timed(lambda request, e=engine: e.generate([request[0]], request[1]), turns)
        p50, p95 = np.percentile(seconds, [50, 95]).tolist()
        found[name] = {
            **cold_start(engine),
            "weights_mb": weights_mb(engine),
            "p50_s": p50,
            "p95_s": p95,
            "prompts_per_second": {str(size): throughput(engine, requests, size) for size in settings.batch_sizes},
        }
        print(f"{name}: {p50 * 1000:.0f} ms per prompt", flush=True)
    return found


def throughput(engine: Engine, requests: Sequence[tuple[str, Command]], batch_size: int) -> float:
    """Prompts per second when `batch_size` of them are written at once."""
    intents, commands = zip(*islice(cycle(requests), batch_size), strict=True)
    seconds = timed(lambda seed: engine.generate(intents, commands, seed=seed, batch_size=batch_size), range(4))
    return batch_size / median(seconds)


def beside(engines: dict[str, Engine], settings: DeploymentSettings) -> dict[str, dict[str, Any]]:
    """Parameters, weights [MB] and tokens per second of the engines and of other models, one text at a time, greedy."""
    student = next(engine for engine in engines.values() if isinstance(engine, Student))
    found = {}

    def add(name: str, parameters: int, megabytes: float, decode: Decode) -> None:
        speed = interval(decoding(decode, repeats=3 if parameters < WHOLE else 1), settings)
        found[name] = {"parameters": parameters, "weights_mb": megabytes, "tokens_per_second": speed}
        print(f"{name}: {speed['mean']:.1f} tokens/s", flush=True)

    for name, engine in engines.items():
        add(f"student, {name}", student.model.num_parameters(), weights_mb(engine), decode_of(engine))
    for shape in settings.shapes:
        model = model_of(shape)
        size, kind = model.num_parameters(), "random weights" if shape in SHAPES else "PyTorch"
        add(f"{shape}, {kind}", size, size * model.dtype.itemsize / 1e6, by_transformers(model))
    return found


def decode_of(engine: Student | DeployedStudent) -> Decode:
    """Greedy decoding by the library that an engine computes with."""
    if isinstance(engine, Student):
        return by_transformers(engine.model)
    return by_ctranslate2(engine.generator(seed=0), engine.codec.tokens()[0])


def weights_mb(engine: Engine) -> float:
    """Size of the weight files that an engine was loaded from [MB]."""
    files = (file for file in engine.folder.iterdir() if file.suffix in (".safetensors", ".bin"))
    return sum(file.stat().st_size for file in files) / 1e6


def decoding(decode: Decode, batch_size: int = 1, written: int = WRITTEN, repeats: int = 3) -> list[float]:
    """Tokens per second, one figure per repeat: 16 tokens are read and `written` tokens are written."""
    turns = [2, *[written] * repeats]  # the first warms up; short, since a large model is slow
    return [batch_size * written / seconds for seconds in timed(partial(decode, batch_size), turns)]


def by_transformers(model: PreTrainedModel, **options: Any) -> Decode:
    """Decoding by Transformers' `generate`, greedy unless its options say otherwise."""
    import torch

    def decode(batch_size: int, written: int) -> None:
        ids = torch.full((batch_size, READ), 17, device=model.device)
        length = {"max_new_tokens": written, "min_new_tokens": written, "pad_token_id": 0}
        model.generate(ids, attention_mask=torch.ones_like(ids), **{"do_sample": False, **length, **options})

    return decode


def by_ctranslate2(generator: Any, token: str, **options: Any) -> Decode:
    """Decoding by a CTranslate2 generator after a repeated token, greedy unless its options say otherwise."""

    def decode(batch_size: int, written: int) -> None:
        length = {"max_length": written, "min_length": written, "include_prompt_in_result": False}
        generator.generate_batch([[token] * READ] * batch_size, **{"sampling_topk": 1, **length, **options})

    return decode


def model_of(shape: str) -> PreTrainedModel:
    """A language model in the machine's number format: a named shape with random weights, or a real model.

    All layers of a large random model share the weights of one layer, so that an 8B model fits a small machine. One
    layer is still larger than a processor's cache, so each token waits for memory as long as with real weights.
    Raises: SettingsError when there is no such model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    device, dtype, _ = device_and_dtype()
    if shape not in SHAPES:
        with loading(f"parameter shapes: {shape!r} is neither {', '.join(SHAPES)} nor a model"):
            return AutoModelForCausalLM.from_pretrained(shape, dtype=dtype).to(device).eval()
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SHAPES[shape]), dtype=dtype)
    if whole.num_parameters() < WHOLE:
        return AutoModelForCausalLM.from_config(whole.config, dtype=dtype).to(device).eval()
    single = AutoConfig.for_model(**{**SHAPES[shape], "num_hidden_layers": 1})
    part = AutoModelForCausalLM.from_config(single, dtype=dtype).to(device)
    weights = part.state_dict()
    shared = {name: weights[re.sub(r"layers\.\d+\.", "layers.0.", name)] for name in whole.state_dict()}
    whole.load_state_dict(shared, assign=True)
    whole.tie_weights()
    whole.model.rotary_emb = part.model.rotary_emb
    return whole.eval()


def timed(work: Callable[[Any], Any], items: Iterable[Any]) -> list[float]:
    """Seconds per item; the first item warms up and is not counted."""
    seconds = []
    for item in items:
        began = time.perf_counter()
        work(item)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]
