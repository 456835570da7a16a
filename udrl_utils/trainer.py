"""TRL's SFT trainer for rows under commands, what it starts from, and its schedule.

A model, a tokenizer and prompt/completion rows go in; a trainer comes out, ready for `train()`. It knows nothing of
rewards: commands are tokens like any other.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from udrl_utils.commands import CommandCodec
from udrl_utils.errors import SettingsError
from udrl_utils.gpt2 import base_tokenizer, new_student, pretrained_student, train_tokenizer, widen
from udrl_utils.machine import device_and_dtype
from udrl_utils.settings import TrainingSettings
from udrl_utils.teachers.recorded import recorded_name

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

PRACTICE = 2_000_000  # prompt tokens that teach a student commands and a new kind of text: twenty minutes of two cores
MOST_PASSES = 8  # with more a student learns its pairs by heart, and the loss on others rises
FEW_PASSES = 2  # up to this number nothing is seen often enough to be learnt by heart
MOST_POSITIONS = 1024  # tokens; a pair that has more is left out
POOL = 50  # batches whose rows are sorted by length together
READ_BEFORE = 2  # passes over prompts of a kind that the base has read: commands alone are new to it


@dataclass(frozen=True)
class Schedule:
    """How a training goes: passes over the pairs, dropout 0..1; `reason` says why in one line."""

    epochs: float
    dropout: float
    reason: str

    def of(self, settings: TrainingSettings) -> TrainingSettings:
        """The settings, with the passes that they left to the pairs filled in."""
        return settings.model_copy(update={"epochs": self.epochs})


def schedule(settings: TrainingSettings, pairs: int, tokens: int, read: bool = False) -> Schedule:
    """How to train on `pairs` pairs, whose prompts have `tokens` tokens together.

    `epochs` are those of the settings, where they are not 0. With epochs=0 few pairs are passed over more often, under
    dropout (docs/log.md has what was measured), and those of a kind that the base has `read` READ_BEFORE times.
    """
    passes = READ_BEFORE if read else round(min(max(PRACTICE / max(tokens, 1), 1), MOST_PASSES), 1)
    epochs = settings.epochs or passes
    dropout = 0.1 if not settings.epochs and passes > FEW_PASSES else 0.0
    parts = [
        f"{epochs:g} passes" + (f" as epochs says, 0 would take {passes:g}" if settings.epochs else ""),
        f"learning rate {settings.learning_rate:.2g}",
        f"dropout {dropout:g}" + (", since each pair is seen often" if dropout else ""),
    ]
    known = ", of a kind that the base has read" if read else ""
    return Schedule(epochs, dropout, f"{pairs:,} pairs of {tokens:,} prompt tokens{known}: {'; '.join(parts)}")


def plan_of(settings: TrainingSettings, train: pd.DataFrame, tokenizer: Any) -> Schedule:
    """The schedule that suits the amount of training rows, and who wrote them."""
    parts = (list(train.prompt[start : start + 10_000]) for start in range(0, len(train), 10_000))
    tokens = sum(len(ids) for texts in parts for ids in tokenizer(texts, add_special_tokens=False).input_ids)
    read = settings.base == "recorded" and set(train.teacher) == {recorded_name()}
    return schedule(settings, len(train), tokens, read)


def untrained(settings: TrainingSettings, codec: CommandCodec, train: pd.DataFrame) -> tuple[Any, Any, Schedule]:
    """The model that training starts from, its tokenizer, and the schedule that suits the rows.

    The model is the base, or a new GPT-2 whose vocabulary is that of the rows.
    """
    if settings.base:
        plan = plan_of(settings, train, base_tokenizer(settings.base))
        return *pretrained_student(settings.base, codec, settings.n_positions), plan
    tokenizer = train_tokenizer(itertools.chain(train.intent, train.prompt), settings.vocab_size, codec.tokens())
    return new_student(settings, tokenizer), tokenizer, plan_of(settings, train, tokenizer)


def make_room(model: Any, tokenizer: Any, data: Sequence[Dataset]) -> None:
    """Widen a model's context to the longest of its prompt/completion rows, in steps of 64 tokens.

    Raises: SettingsError when the model cannot take as many.
    """
    positions = model.config.max_position_embeddings
    lengths = [token_counts(tokenized(rows, tokenizer, max(positions, MOST_POSITIONS)))[0] for rows in data]
    longest = max(max(found, default=0) for found in lengths)
    if longest > positions:
        needed = 64 * math.ceil(longest / 64)
        print(f"the longest pair has {longest} tokens: a context of {needed} instead of {positions}", flush=True)
        widen(model, needed)


def set_dropout(model: Any, share: float) -> None:
    """Set the dropout of all layers of a model, 0..1."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = share


def use_plain_attention(model: Any) -> None:
    """On a CPU it is faster at these lengths than PyTorch's fused kernel, whose backward pass is slow."""
    if device_and_dtype()[0] == "cpu":
        model.set_attn_implementation("eager")


class AlikeLengths:
    """Row numbers in an order whose batches hold rows of similar lengths, the batches themselves in random order.

    Transformers' own grouping goes from long to short again and again, so that each step is biased like the one
    before. A torch sampler: it has a length and takes the epoch, so that a resumed training goes on exactly.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rng, size = random.Random(f"rows {self.seed} {self.epoch}"), self.batch_size
        order = list(range(len(self.lengths)))
        rng.shuffle(order)
        for start in range(0, len(order), size * POOL):
            pool = sorted(order[start : start + size * POOL], key=self.lengths.__getitem__)
            batches = [pool[i : i + size] for i in range(0, len(pool), size)]
            rng.shuffle(batches)
            # only the very last batch may be smaller: pools are whole batches
            batches.sort(key=lambda batch: len(batch) < size)
            yield from itertools.chain.from_iterable(batches)


@cache
def trainer_class() -> type:
    """The trainer's class; made in a function because importing TRL takes seconds."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import PrinterCallback
    from trl import SFTTrainer

    class UDRLTrainer(SFTTrainer):
        """TRL's SFTTrainer with two departures.

        Speed: logits are computed for completion tokens only, without TRL's per-token metrics, and rows of similar
        length share a batch, which needs little padding.
        Weight: the loss is cross entropy summed over completion tokens, divided by what a batch has on average.
        Divided by its own tokens, a token of a short batch would weigh several times one of a long batch.
        """

        def __init__(self, model: Any, **options: Any):
            use_plain_attention(model)
            super().__init__(model, **options)
            self.remove_callback(PrinterCallback)  # the training log prints instead

        def compute_loss(
            self, model: Any, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            ids, mask, labels = inputs["input_ids"], inputs["attention_mask"], inputs["labels"][:, 1:]
            wanted = labels != -100
            with self.accelerator.autocast():  # Accelerate itself casts in the model's forward call only
                logits = self._logits(model, ids, mask, wanted)
            total = cross_entropy(logits.float(), labels[wanted], reduction="sum")
            if not model.training:
                return total / wanted.sum()
            share = 1 if num_items_in_batch is None else self.args.gradient_accumulation_steps
            return total / (len(ids) * self.usual_tokens * share)

        def _logits(self, model: Any, ids: torch.Tensor, mask: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
            """Logits of the wanted tokens, from what precedes each: shape (wanted tokens, vocabulary)."""
            core = self.accelerator.unwrap_model(model)
            if core is not model:  # wrapped for several processes: gradients must pass through the wrapper
                return model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1][wanted]
            hidden = core.base_model(ids, attention_mask=mask, use_cache=False)[0]
            return core.get_output_embeddings()(hidden[:, :-1][wanted])

        @cached_property
        def usual_tokens(self) -> float:
            """Completion tokens that a training row has on average."""
            return token_counts(self.train_dataset)[1] / len(self.train_dataset)

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            lengths, _ = token_counts(self.train_dataset)
            return AlikeLengths(lengths, self.args.train_batch_size * self.args.world_size, self.args.seed)

        def prediction_step(
            self, model: Any, inputs: dict, prediction_loss_only: bool, ignore_keys: Any = None
        ) -> tuple:
            with torch.no_grad():
                return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

    return UDRLTrainer


def make_trainer(
    model: Any, tokenizer: Any, settings: TrainingSettings, output: Path, train: Dataset, held: Dataset
) -> Any:
    """The trainer of a model on prompt/completion rows, with `held` to watch it on."""
    from trl import SFTConfig

    longest = model.config.max_position_embeddings
    args = SFTConfig(  # notebook 03 types this out and says why each value is what it is
        output_dir=str(output),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        adam_beta2=0.98,
        weight_decay=0.01,
        seed=settings.seed,
        **machine_options(settings, len(train)),
    )
    return trainer_class()(
        model=model,
        args=args,
        train_dataset=tokenized(train, tokenizer, longest),
        eval_dataset=tokenized(held, tokenizer, longest),
        processing_class=tokenizer,
    )


def tokenized(rows: Dataset, tokenizer: Any, longest: int) -> Dataset:
    """Prompt/completion rows as token ids and labels, as TRL makes them, but many at once: TRL takes them one by one.

    Nothing is cut: rows of more than `longest` tokens are left out, and a line says how many.
    """
    from accelerate import PartialState

    def tokens(columns: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        wholes = (f"{p}{c}{tokenizer.eos_token}" for p, c in zip(columns["prompt"], columns["completion"], strict=True))
        read, ids = (tokenizer(texts, add_special_tokens=False).input_ids for texts in (columns["prompt"], [*wholes]))
        # a prefix ends with a token of its own, with which no first word of a completion can merge
        kept = [(len(r), i) for r, i in zip(read, ids, strict=True) if len(i) <= longest]
        return {"input_ids": [i for _, i in kept], "labels": [[-100] * r + i[r:] for r, i in kept]}

    with PartialState().main_process_first():  # the others find what it has laid out
        made = rows.map(tokens, batched=True, remove_columns=rows.column_names)
    if len(made) < len(rows):
        print(f"{len(rows) - len(made):,} of {len(rows):,} pairs left out: more than {longest} tokens", flush=True)
    return made


def token_counts(rows: Dataset) -> tuple[list[int], int]:
    """Tokens of each row, and how many tokens of all rows have a label; read as Arrow, for there may be millions."""
    import pyarrow.compute as pc

    lengths, labelled = [], 0
    for part in rows.with_format("arrow").iter(10_000):
        lengths += pc.list_value_length(part["input_ids"]).to_pylist()
        labelled += pc.sum(pc.not_equal(pc.list_flatten(part["labels"]), -100)).as_py()
    return lengths, labelled


def machine_options(settings: TrainingSettings, rows: int) -> dict[str, Any]:
    """Arguments of SFTConfig that say how this machine computes, and how often it logs, evaluates and saves.

    Raises: SettingsError when batch_size cannot be shared by the processes.
    """
    from accelerate import PartialState
    from trl import SFTConfig

    device, dtype, reason = device_and_dtype()
    processes = PartialState().num_processes
    if settings.batch_size % processes:
        raise SettingsError(f"parameter batch_size={settings.batch_size} should be a multiple of {processes} processes")
    print(f"training on {device} in {dtype}: {reason}", flush=True)
    steps = math.ceil(rows / settings.batch_size * settings.epochs)
    renamed = hasattr(SFTConfig, "activation_checkpointing")  # since Transformers 5.23, which warns of the old name
    return {
        # batch_size is that of an optimiser step, whatever the number of processes
        "per_device_train_batch_size": settings.batch_size // processes,
        "per_device_eval_batch_size": settings.batch_size // processes,
        "warmup_steps": max(1, min(200, steps // 20)),
        # a GPU does not wait while rows are collated
        "dataloader_num_workers": 2 if device == "cuda" else 0,
        "bf16": str(dtype) == "torch.bfloat16",
        "fp16": str(dtype) == "torch.float16",
        "use_cpu": device == "cpu",
        # rows are `tokenized` already
        "dataset_kwargs": {"skip_prepare_dataset": True},
        # memory is not short at this size, and recomputing activations costs a third of the speed
        "activation_checkpointing" if renamed else "gradient_checkpointing": False,
        "eval_strategy": "steps",
        "eval_steps": max(1, steps // 3),
        "save_strategy": "steps",
        "save_steps": max(1, steps // 3),
        "save_total_limit": 1,
        "logging_steps": max(1, steps // 60),
        "disable_tqdm": True,
        "report_to": settings.report_to,
    }
