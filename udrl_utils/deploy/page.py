"""Pages to ask a student on: one that a server shows, and one that holds the student itself and needs no server.

A student goes in; out comes HTML. In the second page the weights have 8 bits, and the page's own JavaScript computes
with them. Neither page loads anything from elsewhere: its policy forbids it.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from udrl_utils.engine import TOKENS_PER_WORD, Engine
from udrl_utils.errors import SettingsError
from udrl_utils.tasks import TASKS

if TYPE_CHECKING:
    from udrl_utils.student import Student

HERE = Path(__file__).parent
MOST = 12_000_000  # largest page [bytes]
# Matrices of a GPT-2 layer; Transformers stores them as (inputs, outputs).
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def server_page(engine: Engine, name: str, rewards: bool) -> str:
    """The page of a server. `rewards`: whether the server measures achieved rewards."""
    about = f"Student {name}, {engine.name}, on this server. The ring is what was commanded, the dot what was achieved."
    return render(name, about, page_facts(engine, measured=rewards), "'self'", writer=text_of("remote.js"))


def student_page(student: Student, name: str) -> str:
    """One self-contained page with the student in 8 bits.

    Raises: SettingsError when the student is no GPT-2 with a byte-level vocabulary, or the page were too large.
    """
    tensors, blob = packed(student)
    about = (
        f"Student {name}, {student.model.num_parameters() / 1e6:.1f}M parameters in 8 bits, inside this page: "
        "nothing that you type leaves it. The ring is what was commanded, the dot what was achieved."
    )
    made = render(
        name,
        about,
        page_facts(student),
        "'none'",
        model=as_json(model_facts(student, tensors)),
        weights=base64.b64encode(blob).decode(),
        student=text_of("student.js"),
        writer=text_of("local.js"),
    )
    if len(made.encode()) > MOST:
        raise SettingsError(f"student={name!r}: its page has {len(made) / 1e6:.1f} MB; at most {MOST / 1e6:.0f} MB fit")
    return made


def render(name: str, about: str, facts: dict[str, Any], connect: str, **parts: str) -> str:
    """The page. `connect`: the addresses that it may ask, as its security policy names them."""
    template = jinja2.Environment(autoescape=True).from_string(text_of("page.html"))
    shared = {"css": text_of("page.css"), "script": text_of("page.js"), "page": as_json(facts)}
    return template.render(name=name, about=about, connect=connect, **shared, **parts)


def text_of(file: str) -> str:
    return (HERE / file).read_text(encoding="utf-8")


def as_json(value: Any) -> str:
    """JSON that can stand in a script element, whatever its strings hold."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def page_facts(engine: Engine, measured: bool = False) -> dict[str, Any]:
    """What the form offers: tasks, and for each reward its range and the value of the best command."""
    codec, tasks = engine.codec, []
    for task in filter(codec.edges.__contains__, TASKS):
        best = engine.best_command(task).asked
        rewards = {n: {"low": 0, "high": 1, "step": 0.05, "value": best.get(n)} for n in codec.rewards_of(task)}
        if codec.longest:
            lengths = codec.usual_lengths(task)
            rewards["length"] |= {"low": lengths[0], "high": lengths[-1], "step": 1}
        tasks.append({"name": task, "title": TASKS[task].title, "rewards": rewards})
    sampling = engine.sampling
    return {"tasks": tasks, "temperature": sampling.temperature, "minP": sampling.min_p, "measured": measured}


def model_facts(student: Student, tensors: list[dict[str, Any]]) -> dict[str, Any]:
    """What the page's JavaScript has to know of the model, its tokenizer and its codec."""
    config, codec = student.model.config, student.codec
    tokenizer = json.loads(student.tokenizer.backend_tokenizer.to_str())
    vocabulary = student.tokenizer.get_vocab()
    bins = {
        task: {name: [codec.bin_of_level(task, name, codec.level_of(k)) for k in range(codec.bins)] for name in edges}
        for task, edges in codec.edges.items()
    }
    return {
        "tensors": tensors,
        "layers": config.n_layer,
        "heads": config.n_head,
        "width": config.n_embd,
        "positions": config.n_positions,
        "epsilon": config.layer_norm_epsilon,
        "tokens": sorted(vocabulary, key=vocabulary.__getitem__),
        "merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["model"]["merges"]],
        "special": [token["content"] for token in tokenizer["added_tokens"]],
        "spaced": tokenizer["pre_tokenizer"]["add_prefix_space"],
        "end": student.tokenizer.eos_token_id,
        "tokensPerWord": TOKENS_PER_WORD,
        "longest": codec.longest,
        "rewards": codec.rewards,
        "bins": bins,
        "form": codec.form,
        "place": codec.place,
        "cased": codec.cased,
    }


def packed(student: Student) -> tuple[list[dict[str, Any]], bytes]:
    """The weights as one blob, and what lies in it, in order: name, shape, bits.

    Matrices have 8 bits and one float32 scale per row; what else there is stays float32.
    Raises: SettingsError when the student is no GPT-2 with a byte-level vocabulary.
    """
    kind, reads = student.model.config.model_type, student.tokenizer.backend_tokenizer.pre_tokenizer
    if kind != "gpt2" or type(reads).__name__ != "ByteLevel":
        raise SettingsError(f"a page holds GPT-2 students with a byte-level vocabulary only; this one is {kind}")
    tensors, parts = [], []
    for name, rows in matrices(student).items():
        tensors.append({"name": name, "shape": rows.shape, "bits": 8 if rows.ndim == 2 else 32})
        for part in quantized(rows) if rows.ndim == 2 else [rows]:
            parts.append(part.tobytes() + b"\0" * (-part.nbytes % 4))
    return tensors, b"".join(parts)


def matrices(student: Student) -> dict[str, np.ndarray]:
    """Weights by their short names, as float32; matrices as (outputs, inputs), so that one row gives one output."""
    weights = student.model.get_submodule("transformer").state_dict()  # the head's are the embeddings of tokens
    turned = {name: tensor.T if name.endswith(TRANSPOSED) else tensor for name, tensor in weights.items()}
    return {name: tensor.float().cpu().numpy() for name, tensor in turned.items()}


def quantized(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows in 8 bits and the float32 scale of each: row = scale * integers from -127 to 127."""
    scale = np.maximum(np.abs(rows).max(1), 1e-12).astype(np.float32) / np.float32(127)
    return np.rint(rows / scale[:, None]).astype(np.int8), scale


def round_weights(student: Student) -> None:
    """Give a student in PyTorch the weights that its page has: rounded to 8 bits."""
    import torch

    weights = student.model.get_submodule("transformer").state_dict()
    for name, rows in matrices(student).items():
        if rows.ndim == 2:
            integers, scale = quantized(rows)
            rounded = torch.from_numpy(integers * scale[:, None])
            weights[name].copy_(rounded.T if name.endswith(TRANSPOSED) else rounded)
