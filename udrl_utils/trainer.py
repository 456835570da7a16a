"""TRL's SFT trainer for rows under commands, its schedule, and what is seen of a training while it runs."""

from __future__ import annotations

import itertools
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas

from udrl_utils.commands import Command
from udrl_utils.machine import device_and_dtype
from udrl_utils.runs import write_json
from udrl_utils.settings import SettingsError, TrainingSettings
from udrl_utils.student import Student

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
PRACTICE = 2_000_000  # prompt tokens that teach a student commands and a new kind of text: twenty minutes of two cores
MOST_PASSES = 8  # more, and a student learns its pairs by heart: the loss on others rises
FEW_PASSES = 2  # up to which nothing is seen often enough to be learnt by heart
RATE = 1e-3  # half of it learns too little in the passes that few pairs bear


@dataclass(frozen=True)
class Schedule:
    """How a training goes: passes over the pairs, peak learning rate, dropout (a share), and whether the embeddings
    that a base knows are trained too. `reason` says why, in one line."""

    epochs: float
    learning_rate: float
    dropout: float
    embeddings: bool
    reason: str

    def of(self, settings: TrainingSettings) -> TrainingSettings:
        """The settings with what they left to the amount of pairs."""
        return settings.model_copy(update={"epochs": self.epochs, "learning_rate": self.learning_rate})


def schedule(settings: TrainingSettings, pairs: int, tokens: int) -> Schedule:
    """How to train on so many pairs, whose prompts have so many tokens together.

    `epochs` and `learning_rate` are those of the settings, where they are not 0. With epochs=0 few pairs are passed
    over more often, under dropout, and the embeddings that a base knows are trained: it has read another kind of text
    (docs/log.md has what was measured).
    """
    passes = round(min(max(PRACTICE / max(tokens, 1), 1), MOST_PASSES), 1)
    by_amount, rate = not settings.epochs, settings.learning_rate or RATE
    epochs = passes if by_amount else settings.epochs
    dropout = 0.1 if by_amount and passes > FEW_PASSES else 0.0
    told = [
        f"{epochs:g} passes" + ("" if by_amount else f" as epochs says, 0 would take {passes:g}"),
        f"learning rate {rate:.2g}" + (" as learning_rate says" if settings.learning_rate else ""),
        f"dropout {dropout:g}" + (", since each pair is seen often" if dropout else ""),
    ]
    if settings.base:
        told.append("the base's embeddings " + ("are trained, for it has read other text" if by_amount else "stay"))
    reason = f"{pairs:,} pairs of {tokens:,} prompt tokens: {'; '.join(told)}"
    return Schedule(epochs, rate, dropout, by_amount, reason)


def set_dropout(model: Any, share: float) -> None:
    """Train a model with so much dropout, from now on."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = share


class AlikeLengths:
    """Row numbers in an order whose batches hold rows of alike lengths, the batches themselves in random order.

    Transformers' own grouping goes from long to short again and again, so that each step is biased like the one
    before. A torch sampler: it has a length, and is told the epoch, so that a resumed training goes on exactly.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int, pool: int = 50):
        self.lengths, self.batch_size, self.seed, self.pool, self.epoch = lengths, batch_size, seed, pool, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rng, size = random.Random(f"rows {self.seed} {self.epoch}"), self.batch_size
        order = list(range(len(self.lengths)))
        rng.shuffle(order)
        for start in range(0, len(order), size * self.pool):
            pool = sorted(order[start : start + size * self.pool], key=self.lengths.__getitem__)
            batches = [pool[i : i + size] for i in range(0, len(pool), size)]
            rng.shuffle(batches)
            # only the very last batch may be smaller: what is left over in a pool, the pools' sizes being whole batches
            batches.sort(key=lambda batch: len(batch) < size)
            yield from itertools.chain.from_iterable(batches)


def make_trainer_class() -> type:
    """The trainer; made in a function because importing TRL takes seconds."""
    import torch
    from torch.nn.functional import cross_entropy, kl_div
    from trl import SFTTrainer

    class UDRLTrainer(SFTTrainer):
        """SFTTrainer without its per-token metrics: logits are computed for completion tokens only.

        Alike lengths share a batch: little padding. The loss is cross entropy summed over completion tokens, divided by
        what a batch has on average. Divided by its own tokens, a token of a short batch would weigh several times one
        of a long batch, and the student would learn to write too briefly.
        With an anchor, `weight` times the divergence from that model is added, KL(anchor || model), so that a student
        does not forget what it was (as in Quark, arXiv 2205.13636).
        """

        anchor, weight = None, 0.0

        def compute_loss(
            self, model: Any, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            ids, mask, labels = inputs["input_ids"], inputs["attention_mask"], inputs["labels"][:, 1:]
            wanted = labels != -100
            with self.accelerator.autocast():  # Accelerate casts in the forward call alone, which is not what is called
                logits = self._logits(model, ids, mask, wanted)
            total = cross_entropy(logits.float(), labels[wanted], reduction="sum")
            if self.weight and model.training:
                with torch.no_grad(), self.accelerator.autocast():
                    before = self._logits(self.anchor, ids, mask, wanted)
                now, before = logits.float().log_softmax(-1), before.float().log_softmax(-1)
                total = total + self.weight * kl_div(now, before, reduction="sum", log_target=True)
            if model.training:
                share = 1 if num_items_in_batch is None else self.args.gradient_accumulation_steps
                loss = total / (len(ids) * self.usual_tokens * share)
            else:
                loss = total / wanted.sum()
            return (loss, {"logits": logits}) if return_outputs else loss

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
            lengths, _ = token_counts(self.train_dataset if train_dataset is None else train_dataset)
            return AlikeLengths(lengths, self.args.train_batch_size * self.args.world_size, self.args.seed)

        def prediction_step(
            self, model: Any, inputs: dict, prediction_loss_only: bool, ignore_keys: Any = None
        ) -> tuple:
            with torch.no_grad():
                return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

    return UDRLTrainer


def make_trainer(
    model: Any,
    tokenizer: Any,
    settings: TrainingSettings,
    output: Path,
    train: Dataset,
    held: Dataset,
    anchor: Any = None,
) -> Any:
    """The trainer of a model on prompt/completion rows, with `held` to watch it on and an `anchor` to stay near."""
    if device_and_dtype()[0] == "cpu":
        # at these lengths plain attention is faster than PyTorch's fused kernel, whose backward pass is slow on a CPU
        model.set_attn_implementation("eager")
    trainer = make_trainer_class()(
        model=model,
        args=trainer_config(settings, output, len(train)),
        train_dataset=tokenized(train, tokenizer, model.config.max_position_embeddings),
        eval_dataset=tokenized(held, tokenizer, model.config.max_position_embeddings),
        processing_class=tokenizer,
    )
    if anchor is not None:
        trainer.anchor, trainer.weight = anchor.eval(), settings.kl_anchor
    return trainer


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


def trainer_config(settings: TrainingSettings, output: Path, rows: int) -> Any:
    """SFTConfig of a run; every departure from TRL's defaults has its reason here."""
    from accelerate import PartialState
    from trl import SFTConfig

    device, dtype, reason = device_and_dtype()
    processes = PartialState().num_processes
    if settings.batch_size % processes:
        raise SettingsError(f"parameter batch_size={settings.batch_size} should be a multiple of {processes} processes")
    print(f"training on {device} in {dtype}: {reason}", flush=True)
    steps = math.ceil(rows / settings.batch_size * settings.epochs)
    renamed = hasattr(SFTConfig, "activation_checkpointing")  # since Transformers 5.23, which warns of the old name
    return SFTConfig(
        output_dir=str(output),
        num_train_epochs=settings.epochs,
        # batch_size is that of an optimiser step, whatever the number of processes
        per_device_train_batch_size=settings.batch_size // processes,
        per_device_eval_batch_size=settings.batch_size // processes,
        learning_rate=settings.learning_rate,
        # short runs from scratch: a short warm-up, then down to zero
        lr_scheduler_type="cosine",
        warmup_steps=max(1, min(200, steps // 20)),
        adam_beta2=0.98,
        weight_decay=0.01,
        # a GPU is not to wait while rows are collated
        dataloader_num_workers=2 if device == "cuda" else 0,
        bf16=str(dtype) == "torch.bfloat16",
        fp16=str(dtype) == "torch.float16",
        use_cpu=device == "cpu",
        # rows are `tokenized`, cut to their length and labelled
        dataset_kwargs={"skip_prepare_dataset": True},
        # memory is not short at this size, and recomputing activations costs a third of the speed
        **{"activation_checkpointing" if renamed else "gradient_checkpointing": False},
        eval_strategy="steps",
        eval_steps=max(1, steps // 3),
        save_strategy="steps",
        save_steps=max(1, steps // 3),
        save_total_limit=1,
        logging_steps=max(1, steps // 60),
        disable_tqdm=True,
        report_to=settings.report_to,
        seed=settings.seed,
    )


class TrainingLog:
    """Takes the entries of a trainer's log, and samples for an intent of each task in `held`.

    `live`, if given, is called with the loss table every ten seconds.
    """

    COMMANDS = ({"length": 6}, {"length": 24}, {"relevance": 0.95}, {"diversity": 0.95})

    def __init__(self, variant: str, held: pandas.DataFrame, live: Callable[[pandas.DataFrame], None] | None = None):
        self.variant, self.live = variant, live
        few = held.drop_duplicates("task")[["task", "intent"]]
        self.intents = list(few.itertuples(index=False, name=None))
        self.entries: list[dict[str, Any]] = []
        self.samples: list[dict[str, Any]] = []
        self._started = self._shown = time.monotonic()

    def __call__(self, entry: dict[str, Any], student: Student) -> None:
        """Take one entry of the trainer's log: step, steps, and loss or eval_loss."""
        self.entries.append({"variant": self.variant, **entry})
        if "eval_loss" in entry:
            print(f"step {entry['step']:6} of {entry['steps']}  validation loss {entry['eval_loss']:.3f}", flush=True)
            if self.intents:
                self._sample(entry["step"], student)
        elif "loss" in entry and time.monotonic() - self._shown >= 10:
            self._shown = time.monotonic()
            rate = entry["step"] / (self._shown - self._started)
            left = f"{rate:.1f} steps/s, {(entry['steps'] - entry['step']) / rate / 60:.1f} min left"
            print(f"step {entry['step']:6} of {entry['steps']}  loss {entry['loss']:.3f}  {left}", flush=True)
            if self.live:
                self.live(self.table())

    def _sample(self, step: int, student: Student) -> None:
        requests = [
            (intent, Command(task, **asked))
            for task, intent in self.intents
            for asked in self.COMMANDS
            if set(asked) <= set(student.codec.rewards_of(task))
        ]
        written = student.generate([intent for intent, _ in requests], [command for _, command in requests])
        for (intent, command), (prompt,) in zip(requests, written, strict=True):
            self.samples.append({"step": step, "intent": intent, "command": repr(command), "prompt": prompt})

    def save(self, file: Path) -> None:
        """Keep what was seen."""
        write_json(file, {"variant": self.variant, "entries": self.entries, "samples": self.samples})

    @classmethod
    def load(cls, file: Path) -> TrainingLog:
        """What was seen of an earlier training."""
        kept = json.loads(file.read_text())
        log = cls(kept["variant"], pandas.DataFrame(columns=["task", "intent"]))
        log.entries, log.samples = kept["entries"], kept["samples"]
        return log

    def table(self) -> pandas.DataFrame:
        """Loss entries: variant, step, loss, eval_loss."""
        return pandas.DataFrame(self.entries)


def callback(log: TrainingLog, student: Student) -> Any:
    """A trainer callback that hands each log entry to the training log."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any) -> None:
            if state.is_world_process_zero:
                log({"step": state.global_step, "steps": state.max_steps, **(logs or {})}, student)

    return Watch()
