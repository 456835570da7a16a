"""What training starts from: a GPT-2 from scratch or a pre-trained model, with its tokenizer.

Settings, a codec and texts go in; an untrained student's model and tokenizer come out. Neither rewards nor training are
known here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from udrl_utils.commands import CommandCodec
from udrl_utils.errors import SettingsError, loading
from udrl_utils.settings import TrainingSettings
from udrl_utils.tasks import DATA

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast

END = "<|end|>"
BASE = DATA / "base"  # the shipped one, which the setting base calls "recorded"
NO_BASE = "parameter base={base!r} is neither recorded, a Hub id nor a folder"


def train_tokenizer(texts: Iterable[str], vocab_size: int, special: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE on the texts; `special` tokens are part of the vocabulary and never split."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    # The space before the first word makes a word the same tokens wherever it stands, so that it can be copied.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END, *special], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        bos_token=END,
        pad_token=END,
        extra_special_tokens=list(special),
        padding_side="left",
    )


def new_student(settings: TrainingSettings, tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """A GPT-2 from scratch, of the settings' shape."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=settings.n_positions,
        n_embd=settings.n_embd,
        n_layer=settings.n_layer,
        n_head=settings.n_head,
        activation_function="gelu_pytorch_tanh",  # GPT-2's own, as one operation instead of eight
        # Each pair is seen a few times only: there is nothing to regularise.
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    model = GPT2LMHeadModel(config)
    if settings.copy_init:
        copying_circuit(model)
    return model


def pretrained_student(
    base: str | Path, codec: CommandCodec, n_positions: int = 0
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A pre-trained causal LM with the codec's tokens added to its vocabulary: `recorded`, a Hub id or a folder.

    The embeddings of new tokens are random, spread like the known ones: equal ones would take long to come apart.
    Raises: SettingsError when there is no such model, or when it cannot take `n_positions` tokens.
    """
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = base_tokenizer(base)
    path = base_path(base)
    with loading(NO_BASE.format(base=base)):
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    widen(model, n_positions)
    known = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": codec.tokens()})
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model.resize_token_embeddings(len(tokenizer))
    with torch.no_grad():
        weights = model.get_input_embeddings().weight
        weights[known:] = weights[:known].mean(0) + weights[:known].std(0) * torch.randn_like(weights[known:])
    return model, tokenizer


def base_path(base: str | Path) -> str | Path:
    """Where a base is loaded from. Raises: SettingsError where the shipped one is not made yet."""
    if base != "recorded":
        return base
    if not (BASE / "config.json").exists():
        raise SettingsError(f"parameter base={base!r}: the package has no base yet; make it with: udrl base")
    return BASE


def base_tokenizer(base: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a pre-trained causal LM. Raises: SettingsError when there is no such model."""
    from transformers import AutoTokenizer

    path = base_path(base)
    with loading(NO_BASE.format(base=base)):
        return AutoTokenizer.from_pretrained(path, padding_side="left", add_prefix_space=True)


def widen(model: PreTrainedModel, positions: int) -> None:
    """Let a model take sequences of `positions` tokens. A GPT-2's new positions start as copies of known ones.

    Raises: SettingsError when the model takes fewer and has no table of positions that could grow.
    """
    import torch

    most = model.config.max_position_embeddings
    if positions <= most:
        return
    table = getattr(model.base_model, "wpe", None)
    if table is None:
        raise SettingsError(f"parameter base: this model takes at most {most} tokens, and {positions} are needed")
    start = most // 2
    source = [k if k < most else start + (k - start) % (most - start) for k in range(positions)]
    wider = torch.nn.Embedding.from_pretrained(table.weight.detach()[source].clone(), freeze=False)
    model.base_model.wpe, model.config.n_positions = wider, positions


def copying_circuit(model: GPT2LMHeadModel, scale: float = 0.05) -> None:
    """Start the first two layers of a GPT-2 as an induction circuit, so that it copies from its first step.

    Heads of layer 0 attend to the previous position and write its token, rotated, into the stream. Heads of
    layer 1 look for the place where the current token was such a previous token, and add the token that stands
    there: "... A B ... A" is continued with B. Small models from scratch need many thousand steps to find this
    (induction heads: Olsson et al., arXiv 2209.11895); set as a starting point, it is trained on like all else
    (initialising attention by its wanted pattern: Trockman and Kolter, arXiv 2305.09828).

    Doubled queries make the heads look at one place; what layer 1 writes is four times a token's embedding, to
    outweigh the current token's own. Before any training this continues 9 of 10 repeated random sequences rightly.

    The last head-width dimensions of the embeddings start as positions, the others as tokens.
    """

    import torch

    width, heads = model.config.n_embd, model.config.n_head
    size = width // heads
    tokens = width - size  # dimensions that start as token identity
    wte, wpe = model.transformer.wte.weight, model.transformer.wpe.weight
    random_rotation = lambda: torch.linalg.qr(torch.randn(tokens, tokens))[0]  # noqa: E731

    # Frequencies of a discrete cosine kernel: positions m and n overlap only where m = n.
    frequency = math.pi * (torch.arange(size // 2) + 0.5) / (size // 2)
    angle = torch.arange(wpe.shape[0])[:, None] * frequency
    rotation, matcher = random_rotation(), random_rotation()[:, :size]
    with torch.no_grad():
        wte.normal_(0, scale)
        wte[:, tokens:] = 0
        wpe.zero_()
        wpe[:, tokens::2], wpe[:, tokens + 1 :: 2] = angle.sin() * scale, angle.cos() * scale

        back = torch.zeros(width, size)  # reads a position, asks for the one before
        even, odd = torch.arange(0, size, 2), torch.arange(1, size, 2)
        back[tokens + even, even], back[tokens + odd, even] = frequency.cos(), -frequency.sin()
        back[tokens + odd, odd], back[tokens + even, odd] = frequency.cos(), frequency.sin()
        here = torch.zeros(width, size)
        here[tokens:] = torch.eye(size)
        current, previous = torch.zeros(width, size), torch.zeros(width, size)
        current[:tokens], previous[:tokens] = matcher, rotation.T @ matcher

        for layer, query, key in ((0, back, here), (1, current, previous)):
            attention = model.transformer.h[layer].attn
            for head in range(tokens // size):
                part = slice(head * size, (head + 1) * size)
                read = torch.zeros(width, size)
                read[part] = torch.eye(size)
                write = torch.zeros(size, width)
                write[:, :tokens] = rotation[part] if layer == 0 else torch.eye(tokens)[part]
                for third, weight in enumerate((2 * query, key, read)):
                    start = third * width + head * size
                    attention.c_attn.weight[:, start : start + size] = weight
                attention.c_proj.weight[part] = write * scale * (1 if layer == 0 else 4)
