"""Training: TRL's SFT trainer on prompt/completion pairs whose prompts begin with commands.

`python -m udrl_utils.training --run outputs/<run>` trains as the notebook does, under `accelerate launch` too.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udrl_utils.commands import Command, CommandCodec
from udrl_utils.rewards import read_annotated
from udrl_utils.settings import AnnotationSettings, RunFolder, TrainingSettings, device_and_dtype, seed_everything
from udrl_utils.student import Student, new_student, prefix_of, pretrained_student, train_tokenizer
from udrl_utils.tasks import clean_intent, share, words

if TYPE_CHECKING:
    import pandas
    from datasets import Dataset


def left_open(pair_id: str, rewards: list[str], settings: TrainingSettings) -> frozenset[str]:
    """Rewards that a pair is trained without: none, all, or some, so that any command may be left open later."""
    if share(f"dropout {pair_id}", settings.seed) >= settings.command_dropout:
        return frozenset()
    kept = int(share(f"kept {pair_id}", settings.seed) * 2 ** len(rewards))
    return frozenset(name for i, name in enumerate(rewards) if not kept >> i & 1)


def command_pairs(
    annotated: pandas.DataFrame, codec: CommandCodec, settings: TrainingSettings, commanded: bool = True
) -> Dataset:
    """Prompt/completion rows in TRL's standard form: command tokens, intent, end of prefix -> prompt.

    commanded=False leaves every command open and writes no horizon, for the plain baseline.
    """
    from datasets import Dataset

    names, swapped = codec.rewards, WordSwaps(annotated, settings)

    def pair(row: dict[str, Any]) -> dict[str, str]:
        opened = left_open(row["pair_id"], names, settings) if commanded else frozenset(names)
        intent, prompt = swapped(row)
        if commanded and settings.horizon and "length" in names:
            prompt = codec.count_down(prompt, settings.horizon)
        return {"prompt": prefix_of(codec.encode_achieved(row, opened), intent), "completion": prompt}

    return Dataset.from_list([pair(row) for row in annotated.to_dict("records")])


class WordSwaps:
    """Replaces words that an intent and its prompt share by other words, the same in both.

    What a prompt must keep of its intent is then never a matter of habit: the student has to copy. Half of the new
    words come from other intents, half are spliced from two of them and mean nothing.
    """

    def __init__(self, annotated: pandas.DataFrame, settings: TrainingSettings):
        found = {word for intent in annotated.intent for word in words(clean_intent(intent))}
        self.known = sorted(word for word in found if len(word) > 3 and word.isalpha())
        self.settings = settings

    def __call__(self, row: dict[str, Any]) -> tuple[str, str]:
        """Intent and prompt of a pair, with or without swaps; the same pair and seed give the same ones."""
        intent, prompt = clean_intent(row["intent"]), row["prompt"]
        rng = random.Random(f"swap {self.settings.seed} {row['pair_id']}")
        if rng.random() >= self.settings.word_swaps:
            return intent, prompt
        shared = sorted({w for w in words(intent) if len(w) > 3 and w.isalpha()} & set(words(prompt)))
        new = {word: self._other(rng) for word in shared if rng.random() < 0.5}
        if not new:
            return intent, prompt
        pattern = re.compile(rf"\b(?:{'|'.join(new)})\b", re.IGNORECASE)
        swap = lambda text: pattern.sub(lambda match: new[match[0].lower()], text)  # noqa: E731
        return swap(intent), swap(prompt)

    def _other(self, rng: random.Random) -> str:
        word, tail = rng.choice(self.known), rng.choice(self.known)
        return word if rng.random() < 0.5 else word[: rng.randint(2, 4)] + tail[-rng.randint(2, 5) :]


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
    from torch.nn.functional import cross_entropy
    from trl import SFTTrainer

    class UDRLTrainer(SFTTrainer):
        """SFTTrainer without its per-token metrics: logits are computed for completion tokens only.

        The loss is the same: mean cross entropy over completion tokens. Alike lengths share a batch: little padding.
        """

        def compute_loss(
            self, model: Any, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            ids, mask, labels = inputs["input_ids"], inputs["attention_mask"], inputs["labels"][:, 1:]
            wanted = labels != -100
            core = self.accelerator.unwrap_model(model)
            if core is model:
                hidden = core.base_model(ids, attention_mask=mask, use_cache=False)[0]
                logits = core.get_output_embeddings()(hidden[:, :-1][wanted])
            else:  # wrapped for several processes: gradients must pass through the wrapper
                logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1][wanted]
            total = cross_entropy(logits.float(), labels[wanted], reduction="sum")
            loss = total / (wanted.sum() if num_items_in_batch is None else num_items_in_batch)
            if self.args.average_tokens_across_devices and num_items_in_batch is not None:
                loss = loss * self.accelerator.num_processes
            return (loss, {"logits": logits}) if return_outputs else loss

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            rows = self.train_dataset if train_dataset is None else train_dataset
            lengths = [len(ids) for ids in rows["input_ids"]]
            return AlikeLengths(lengths, self.args.train_batch_size, self.args.seed)

        def prediction_step(
            self, model: Any, inputs: dict, prediction_loss_only: bool, ignore_keys: Any = None
        ) -> tuple:
            import torch

            with torch.no_grad():
                return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

    return UDRLTrainer


def make_trainer(
    model: Any, tokenizer: Any, settings: TrainingSettings, output: Path, train: Dataset, held: Dataset
) -> Any:
    """The trainer of a model on prompt/completion rows, with `held` to watch it on."""
    if model.device.type == "cpu":
        # at these lengths plain attention is faster than PyTorch's fused kernel, whose backward pass is slow on a CPU
        model.set_attn_implementation("eager")
    return make_trainer_class()(
        model=model,
        args=trainer_config(settings, output, len(train)),
        train_dataset=train,
        eval_dataset=held,
        processing_class=tokenizer,
    )


def trainer_config(settings: TrainingSettings, output: Path, rows: int) -> Any:
    """SFTConfig of a run; every departure from TRL's defaults has its reason here."""
    from trl import SFTConfig

    device, dtype, reason = device_and_dtype()
    print(f"training on {device} in {dtype}: {reason}", flush=True)
    steps = math.ceil(rows / settings.batch_size * settings.epochs)
    return SFTConfig(
        output_dir=str(output),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        # short runs from scratch: a short warm-up, then down to zero
        lr_scheduler_type="cosine",
        warmup_steps=max(1, min(200, steps // 20)),
        adam_beta2=0.98,
        weight_decay=0.01,
        bf16=str(dtype) == "torch.bfloat16",
        fp16=str(dtype) == "torch.float16",
        use_cpu=device == "cpu",
        max_length=settings.n_positions,
        # memory is not short at this size, and recomputing activations costs a third of the speed
        gradient_checkpointing=False,
        completion_only_loss=True,
        eval_strategy="steps",
        eval_steps=max(1, steps // 6),
        save_strategy="steps",
        save_steps=max(1, steps // 3),
        save_total_limit=1,
        logging_steps=max(1, steps // 60),
        disable_tqdm=True,
        report_to="none",
        seed=settings.seed,
        dataset_num_proc=None,
    )


class TrainingLog:
    """What is seen of a training: loss entries, samples under commands, and a printed line now and then.

    `live`, if given, is called with the loss table at most every ten seconds.
    """

    COMMANDS = ({"length": 6}, {"length": 24}, {"relevance": 0.95}, {"diversity": 0.95})

    def __init__(
        self, variant: str, intents: list[tuple[str, str]], live: Callable[[pandas.DataFrame], None] | None = None
    ):
        self.variant, self.intents, self.live = variant, intents, live
        self.entries: list[dict[str, Any]] = []
        self.samples: list[dict[str, Any]] = []
        self._started = self._shown = time.monotonic()

    def __call__(self, entry: dict[str, Any], student: Student) -> None:
        """Take one entry of the trainer's log: step, steps, and loss or eval_loss."""
        self.entries.append({"variant": self.variant, **entry})
        if "eval_loss" in entry:
            print(f"step {entry['step']:6} of {entry['steps']}  validation loss {entry['eval_loss']:.3f}", flush=True)
            self._sample(entry["step"], student)
        elif "loss" in entry and time.monotonic() - self._shown >= 10:
            self._shown = time.monotonic()
            left = (self._shown - self._started) * (entry["steps"] / entry["step"] - 1)
            print(
                f"step {entry['step']:6} of {entry['steps']}  loss {entry['loss']:.3f}  {left / 60:.1f} min left",
                flush=True,
            )
            if self.live:
                self.live(self.table())

    def _sample(self, step: int, student: Student) -> None:
        known = [asked for asked in self.COMMANDS if set(asked) <= set(student.codec.rewards)]
        requests = [(intent, Command(task, **asked)) for task, intent in self.intents for asked in known]
        written = student.generate([intent for intent, _ in requests], [command for _, command in requests])
        for (intent, command), (prompt,) in zip(requests, written, strict=True):
            self.samples.append({"step": step, "intent": intent, "command": repr(command), "prompt": prompt})

    def table(self) -> pandas.DataFrame:
        """Loss entries: variant, step, loss, eval_loss."""
        import pandas

        return pandas.DataFrame(self.entries)


def callback(log: TrainingLog, student: Student) -> Any:
    """A trainer callback that hands each log entry to the training log."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any) -> None:
            if state.is_world_process_zero:
                log({"step": state.global_step, "steps": state.max_steps, **(logs or {})}, student)

    return Watch()


def fit_codec(settings: TrainingSettings, run: RunFolder) -> CommandCodec:
    """The codec of a run, fitted on its train split."""
    return CommandCodec.fit(read_annotated(run, "train"), run.settings(AnnotationSettings).rewards, settings.bins)


def train_student(
    settings: TrainingSettings,
    run: RunFolder,
    commanded: bool = True,
    live: Callable[[pandas.DataFrame], None] | None = None,
) -> TrainingLog:
    """Train on the run's annotated pairs and save a Hugging Face folder; resumes from the last checkpoint exactly.

    commanded=False trains the plain baseline: the same pairs, steps and shape, and no reward in any prefix. It goes
    to 03_student/sft_plain. The folder of a student is only replaced once its successor is complete.
    """
    from transformers import PrinterCallback

    seed_everything(settings.seed)
    codec = fit_codec(settings, run)
    data = {
        split: command_pairs(read_annotated(run, split), codec, settings, commanded)
        for split in ("train", "validation")
    }
    if settings.base:
        model, tokenizer = pretrained_student(settings.base, codec, settings.n_positions)
    else:
        train = read_annotated(run, "train")
        texts = [*train.intent, *train.prompt]
        tokenizer = train_tokenizer(texts, settings.vocab_size, codec.tokens())
        model = new_student(settings, tokenizer)
    folder = run / "03_student" if commanded else run / "03_student" / "sft_plain"
    work = folder / "checkpoints"
    trainer = make_trainer(model, tokenizer, settings, work, data["train"], data["validation"])
    few = read_annotated(run, "validation").drop_duplicates("task")
    log = TrainingLog(
        "student" if commanded else "sft_plain", list(few[["task", "intent"]].itertuples(index=False, name=None)), live
    )
    trainer.remove_callback(PrinterCallback)  # the training log prints instead
    trainer.add_callback(callback(log, Student(trainer.model, tokenizer, codec)))
    trainer.train(resume_from_checkpoint=last_checkpoint(work, settings))
    write_student(trainer.model, tokenizer, codec, folder)
    shutil.rmtree(work)
    return log


def last_checkpoint(work: Path, settings: TrainingSettings) -> str | None:
    """The newest checkpoint made with the same settings; checkpoints of other settings are removed."""
    from transformers.trainer_utils import get_last_checkpoint

    note = work / "settings.json"
    if note.exists() and note.read_text() != settings.model_dump_json():
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    note.write_text(settings.model_dump_json())
    return get_last_checkpoint(str(work))


def write_student(model: Any, tokenizer: Any, codec: CommandCodec, folder: Path) -> None:
    """Save beside, then move file by file, commands.json last: an interrupted save leaves the old student."""
    new = folder / ".saving"
    model.save_pretrained(new)
    tokenizer.save_pretrained(new)
    codec.save(new)
    (new / "README.md").write_text(model_card(model, codec))
    for file in sorted(new.iterdir(), key=lambda file: file.name == "commands.json"):
        file.replace(folder / file.name)
    new.rmdir()


def model_card(model: Any, codec: CommandCodec) -> str:
    """What somebody who finds the student's folder must know to use it."""
    best = "\n".join(f"- {task}: `{codec.best_command(task)!r}`" for task in codec.edges)
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---
# Prompt-writing student

{model.num_parameters() / 1e6:.1f}M parameters, trained by upside-down reinforcement learning on prompts of a teacher.
It reads command tokens and an intent, and writes a prompt. Commands: {", ".join(codec.rewards)}; lengths up to
{codec.longest} words, other rewards as quantile levels of the train split in {codec.bins} bins (`commands.json`).

    from udrl_utils.commands import Command
    from udrl_utils.student import Student
    Student.load("this folder").generate(["koi pond"], Command("{next(iter(codec.edges))}", length=18))

Best supported commands:

{best}
"""


def main() -> None:
    """Entry point of `python -m udrl_utils.training`."""
    parser = argparse.ArgumentParser(description="train the student of a run whose pairs are annotated")
    parser.add_argument("--run", type=Path, required=True, help="run folder, such as outputs/laptop")
    parser.add_argument("--plain", action="store_true", help="train the baseline without commands")
    arguments = parser.parse_args()
    run = RunFolder(arguments.run)
    train_student(run.settings(TrainingSettings), run, commanded=not arguments.plain)


if __name__ == "__main__":
    main()
