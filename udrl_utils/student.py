"""The student: tokenizer, GPT-2, and a trained one that writes prompts for intents under commands."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from udrl_utils.commands import Command, CommandCodec, CommandError
from udrl_utils.guidance import Sampling, write
from udrl_utils.machine import device_and_dtype
from udrl_utils.settings import RunError, SettingsError, TrainingSettings
from udrl_utils.tasks import DATA, clean_intent

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast

END = "<|end|>"
BASE = DATA / "base"


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
    """A pre-trained causal LM, such as gpt2, with the codec's tokens added to its vocabulary.

    Raises: SettingsError when there is no such model, or when it takes fewer than `n_positions` tokens.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = BASE if base == "embedded" else base
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left", add_prefix_space=True)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SettingsError(f"parameter base={base!r} is neither embedded, a Hub id nor a folder: {reason}") from None
    if n_positions > model.config.max_position_embeddings:
        most = model.config.max_position_embeddings
        raise SettingsError(f"parameter n_positions={n_positions} is more than base={base!r} takes, at most {most}")
    trained = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": codec.tokens()})
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model.resize_token_embeddings(len(tokenizer))
    keep_embeddings(model, trained)
    return model, tokenizer


def keep_embeddings(model: PreTrainedModel, trained: int) -> None:
    """Train embeddings from number `trained` on only: those of the base stay as they are, weight decay aside.

    A run shows a student a part of its tokens. Were the embeddings trained, those of all others would drift, and
    with them the student's hold on words that it meets only later.
    """
    import torch

    def of_new_tokens(gradient: torch.Tensor) -> torch.Tensor:
        new = torch.arange(len(gradient), device=gradient.device) >= trained
        return gradient * new[:, None]

    model.get_input_embeddings().weight.register_hook(of_new_tokens)


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


class Student:
    """A trained student with its tokenizer and codec, loaded from one folder."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, codec: CommandCodec):
        self.model, self.tokenizer, self.codec = model, tokenizer, codec

    @classmethod
    def load(cls, folder: str | Path) -> Student:
        """Load `outputs/<run>/03_student`. Raises: RunError when there is no student."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = Path(folder)
        if not (folder / "commands.json").exists():
            raise RunError(f"no student in {folder}: run notebooks/03_udrl_training.ipynb first")
        device = device_and_dtype()[0]
        model = AutoModelForCausalLM.from_pretrained(folder).to(device)
        return cls(model, AutoTokenizer.from_pretrained(folder, padding_side="left"), CommandCodec.load(folder))

    def save(self, folder: Path) -> None:
        """Save beside, then move file by file, commands.json last: an interrupted save leaves the old student."""
        new = folder / ".saving"
        new.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(new)
        self.tokenizer.save_pretrained(new)
        self.codec.save(new)
        (new / "README.md").write_text(model_card(self))
        for file in sorted(new.iterdir(), key=lambda file: file.name == "commands.json"):
            file.replace(folder / file.name)
        new.rmdir()

    def best_command(self, task: str) -> Command:
        """The command that served a task best on validation intents."""
        return self.codec.best_command(task)

    def prefix(self, intent: str, command: Command) -> str:
        """What the student reads before it writes. The intent gives way where it does not fit the context."""
        return self.codec.prefix(self.codec.encode(command), self._fitting(clean_intent(intent)))

    def _fitting(self, intent: str) -> str:
        room = self.model.config.max_position_embeddings // 2
        # one token is never more than 16 characters of ordinary text: a bound that spares tokenizing what is cut anyway
        ids = self.tokenizer(intent[: 16 * room], add_special_tokens=False, split_special_tokens=True).input_ids
        return intent if len(ids) <= room else self.tokenizer.decode(ids[:room]).strip()

    def generate(
        self,
        intents: Sequence[str],
        command: Command | Sequence[Command],
        n: int = 1,
        seed: int = 0,
        temperature: float = 1.0,
        min_p: float = 0.02,
        guidance: float = 1.0,
        strict: bool = False,
        batch_size: int = 128,
    ) -> list[list[str]]:
        """n prompts per intent, under one command for all or one command each.

        min_p: tokens less likely than this share of the likeliest are never drawn: where a word must be copied
        little else is left, where anything may follow nearly everything is.
        guidance: how far the levels of a command are followed, 1 being what was learnt. More obeys better, varies less,
        and costs a second pass.
        strict: refuse a command that the train split does not support; else the nearest is asked for, with a warning.

        Returns a list (one per intent) of lists (n) of str. The same seed and arguments give the same prompts.
        Raises: CommandError when a command asks for what the student does not know, or an intent is empty.
        """
        import torch

        commands = [command] * len(intents) if isinstance(command, Command) else list(command)
        for intent in intents:
            if not clean_intent(intent):
                raise CommandError(f"intent={intent!r} is empty")
        found = {command: self.codec.feasible(command, strict) for command in dict.fromkeys(commands)}
        for note in filter(None, (note for _, note in found.values())):
            warnings.warn(note, stacklevel=2)
        commands = [found[command][0] for command in commands]
        asked = [self.prefix(i, c) for i, c in zip(intents, commands, strict=True)]
        # the same without levels, for commands that have levels to be guided by
        opened = {
            k: self.prefix(intents[k], Command(c.task, c.length))
            for k, c in enumerate(commands)
            if c.levels and guidance != 1
        }
        longest = [c.length or self.codec.longest or 60 for c in commands]
        # Alike prompts share a batch: it pads and runs as long as its longest.
        order = [k for k in sorted(range(len(asked)), key=lambda k: (longest[k], len(asked[k]))) for _ in range(n)]
        written: list[list[str]] = [[] for _ in asked]
        sampling = Sampling(torch.Generator(self.model.device).manual_seed(seed), temperature, min_p, guidance)
        training = self.model.training
        self.model.eval()
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            guided = [place for place, k in enumerate(rows) if k in opened]
            prefixes = [asked[k] for k in rows] + [opened[rows[place]] for place in guided]
            for k, text in zip(rows, self._write(prefixes, guided, longest[rows[-1]], sampling), strict=True):
                written[k].append(text)
        self.model.train(training)
        return written

    def log_likelihood(self, prefixes: Sequence[str], prompts: Sequence[str], batch_size: int = 64) -> list[float]:
        """Log-probability of each prompt, its end included, after its prefix [nats]; of what fits the context."""
        import torch

        found: list[float] = []
        for start in range(0, len(prefixes), batch_size):
            rows = slice(start, start + batch_size)
            pairs = [f"{a}{b}{self.tokenizer.eos_token}" for a, b in zip(prefixes[rows], prompts[rows], strict=True)]
            fits = {"truncation": True, "max_length": self.model.config.max_position_embeddings}
            batch = self.tokenizer(pairs, padding=True, return_tensors="pt", add_special_tokens=False, **fits)
            batch = batch.to(self.model.device)
            sizes = [len(ids) for ids in self.tokenizer(list(prefixes[rows]), add_special_tokens=False).input_ids]
            position = batch.attention_mask.cumsum(-1)
            with torch.inference_mode():
                logits = self.model(
                    input_ids=batch.input_ids,
                    attention_mask=batch.attention_mask,
                    position_ids=(position - 1).clamp(min=0),
                ).logits
            each = logits[:, :-1].float().log_softmax(-1).gather(-1, batch.input_ids[:, 1:, None])[..., 0]
            written = position[:, 1:] > torch.tensor(sizes, device=position.device)[:, None]
            found += (each * written).sum(-1).tolist()
        return found

    def _write(self, prefixes: list[str], guided: list[int], words: int, sampling: Sampling) -> list[str]:
        import torch

        batch = self.tokenizer(prefixes, padding=True, return_tensors="pt", add_special_tokens=False)
        room = self.model.config.max_position_embeddings - batch.input_ids.shape[1]
        most = min(room, 5 * words // 2 + 12)
        with torch.inference_mode():
            ids = write(self.model, batch.to(self.model.device), guided, sampling, most, self.tokenizer.eos_token_id)
        return [" ".join(text.split()) for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def model_card(student: Student) -> str:
    """What somebody who finds the student's folder must know to use it."""
    codec = student.codec
    best = "\n".join(f"- {task}: `{codec.best_command(task)!r}`" for task in codec.edges)
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---
# Prompt-writing student

{student.model.num_parameters() / 1e6:.1f}M parameters, trained by upside-down reinforcement learning on prompts
that a teacher wrote. It reads command tokens and an intent, and writes a prompt.
Commands: {", ".join(codec.rewards)}; lengths up to
{codec.longest} words, other rewards as quantile levels of the train split in {codec.bins} bins (`commands.json`).

    from udrl_utils.commands import Command
    from udrl_utils.student import Student
    Student.load("this folder").generate(["koi pond"], Command("{next(iter(codec.edges))}", length=18))

Commands that served best on validation intents:

{best}
"""
