"""How fast training and decoding are, each beside what one would use instead, as ratios of one run.

And what it costs that a run is made of notebooks.

    make bench        # or: python benchmarks/speed.py --run outputs/laptop --turns 5 --out outputs/bench

Both sides of a ratio take turns, so that a machine that slows down slows down both. Prints the median ratio of all
turns with its lowest and highest; writes speed.json and speed.png.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import nbformat
import torch

from udrl_utils import figures
from udrl_utils.commands import CommandCodec
from udrl_utils.deploy import latency
from udrl_utils.deploy.export import import_ctranslate2, write_ctranslate2
from udrl_utils.machine import device_and_dtype, environment, seed_everything
from udrl_utils.presets import read_settings
from udrl_utils.rewards import read_annotated
from udrl_utils.rows import command_pairs
from udrl_utils.runs import RunFolder, write_json
from udrl_utils.settings import TrainingSettings
from udrl_utils.trainer import AlikeLengths, make_trainer, untrained

STEPS = 40  # optimiser steps of one turn of training; the first one warms up
ROWS = 4000  # training rows that they are drawn from, where steps do not take more


def take_turns(turns: int, **sides: Callable[[], float]) -> dict[str, list[float]]:
    """What each side measures, turn by turn, after a turn that warms up."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name, measure in sides.items():
            value = measure()
            if turn:
                found[name].append(value)
                print(f"  turn {turn} of {turns}: {name} {value:.4g}", flush=True)
    return found


def ratio(found: dict[str, list[float]], ours: str, theirs: str) -> dict[str, float]:
    """Ratio of two sides that took turns: median, lowest, highest."""
    each = [a / b for a, b in zip(found[ours], found[theirs], strict=True)]
    return {"median": median(each), "low": min(each), "high": max(each)}


def notebooks(run: RunFolder) -> dict[str, Any]:
    """Seconds that executed notebooks took, and their cells alone: between are papermill and starting kernels."""
    files = sorted((run / "notebooks").glob("*.ipynb"))
    if not files:
        raise SystemExit(f"no executed notebooks in {run / 'notebooks'}: make run first")
    executed = [nbformat.read(file, as_version=4) for file in files]
    seconds = {
        "whole": [notebook.metadata.papermill.duration for notebook in executed],
        "cells": [sum(c.metadata.papermill.duration or 0 for c in notebook.cells) for notebook in executed],
    }
    return {
        "files": [file.stem for file in files],
        "seconds": seconds,
        "over their cells": ratio(seconds, "whole", "cells"),
    }


def training(run: RunFolder, turns: int, home: Path) -> dict[str, Any]:
    """Non-padding tokens per second: our trainer, TRL's with its defaults, and a bare loop over our batches."""
    settings, annotated = run.settings(TrainingSettings), read_annotated(run)
    codec = CommandCodec.load(run / "03_student")
    train, held = (annotated[annotated.split == split] for split in ("train", "validation"))
    train = train.sample(min(max(ROWS, STEPS * settings.batch_size), len(train)), random_state=settings.seed)
    rows, watched = command_pairs(train, codec, settings), command_pairs(held.head(256), codec, settings)
    brief = settings.model_copy(update={"epochs": STEPS * settings.batch_size / len(rows)})
    losses: dict[str, list[float]] = {}

    def side(name: str, make: Callable[..., Any]) -> Callable[[], float]:
        def measure() -> float:
            seed_everything(settings.seed)
            model, tokenizer, _ = untrained(settings, codec, train)
            rate = make(model, tokenizer)
            losses.setdefault(name, []).append(loss_of(model, tokenizer, watched))
            return rate

        return measure

    def ours(model: Any, tokenizer: Any) -> float:
        trainer = make_trainer(model, tokenizer, brief, home / "ours", rows, watched)
        trainer.args.eval_strategy = trainer.args.save_strategy = "no"
        # TRL's default: a whole training logs 60 times, which would be at every step of a brief one
        trainer.args.logging_steps = 10
        return tokens_per_second(trainer)

    def stock(model: Any, tokenizer: Any) -> float:
        from trl import SFTConfig, SFTTrainer

        device, dtype, _ = device_and_dtype()
        # its defaults but for what must be equal on both sides, and the number format, which a CPU wants to be told
        how = {"max_steps": STEPS, "per_device_train_batch_size": brief.batch_size, "report_to": "none"}
        how |= {"learning_rate": brief.learning_rate, "use_cpu": device == "cpu", "bf16": dtype == torch.bfloat16}
        config = SFTConfig(str(home / "stock"), disable_tqdm=True, **how)
        return tokens_per_second(SFTTrainer(model, config, train_dataset=rows, processing_class=tokenizer))

    def bare(model: Any, tokenizer: Any) -> float:
        # the rows, the order of batches and the collation of our trainer, and nothing else of it
        trainer = make_trainer(model, tokenizer, brief, home / "bare", rows, watched)
        order = list(
            AlikeLengths([len(ids) for ids in trainer.train_dataset["input_ids"]], brief.batch_size, brief.seed)
        )
        batches = [order[k * brief.batch_size : (k + 1) * brief.batch_size] for k in range(STEPS)]
        return bare_loop(model, [trainer.data_collator([trainer.train_dataset[i] for i in b]) for b in batches], brief)

    found = take_turns(turns, ours=side("ours", ours), stock=side("stock", stock), bare=side("bare", bare))
    return {
        "tokens per second": found,
        "validation loss": {name: values[-1] for name, values in losses.items()},
        "over stock SFTTrainer": ratio(found, "ours", "stock"),
        "over a bare loop": ratio(found, "ours", "bare"),
    }


def tokens_per_second(trainer: Any) -> float:
    """Non-padding tokens that a trainer trains on per second, from its second step on."""
    from transformers import TrainerCallback

    sizes, ends, loss_of_batch = [], [], trainer.compute_loss

    def counting(model: Any, inputs: dict, **how: Any) -> Any:
        if model.training:
            sizes.append(inputs["attention_mask"].sum())
        return loss_of_batch(model, inputs, **how)

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step in (1, state.max_steps):
                ends.append(now())

    trainer.compute_loss = counting
    trainer.add_callback(Clock())
    trainer.train()
    return int(sum(sizes[1:])) / (ends[-1] - ends[0])


def now() -> float:
    """Seconds on a clock, all that a GPU was given to do being done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def bare_loop(model: Any, batches: list[dict[str, torch.Tensor]], settings: TrainingSettings) -> float:
    """Non-padding tokens per second of AdamW on batches, in the machine's number format, from its second step on."""
    from torch.nn.functional import cross_entropy

    device, dtype, _ = device_and_dtype()
    model, ends = model.to(device).train(), []
    how = {"lr": settings.learning_rate, "betas": (0.9, 0.98), "weight_decay": 0.01, "fused": device == "cuda"}
    optimizer = torch.optim.AdamW(model.parameters(), **how)
    for batch in batches:
        batch = {name: value.to(device) for name, value in batch.items()}
        labels = batch["labels"][:, 1:]
        wanted = labels != -100
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            hidden = model.base_model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)[0]
            loss = cross_entropy(model.lm_head(hidden[:, :-1][wanted]).float(), labels[wanted])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if not ends:
            ends.append(now())
    return sum(int(batch["attention_mask"].sum()) for batch in batches[1:]) / (now() - ends[0])


@torch.no_grad()
def loss_of(model: Any, tokenizer: Any, rows: Any) -> float:
    """Mean loss of completion tokens [nats]."""
    total, count = 0.0, 0
    for row in rows:
        before, after = (tokenizer(row[name], add_special_tokens=False).input_ids for name in ("prompt", "completion"))
        ids = torch.tensor([before + after], device=model.device)
        scores = model.eval()(ids).logits[0, len(before) - 1 : -1].float().log_softmax(-1)
        total -= float(scores.gather(1, ids[0, len(before) :, None]).sum())
        count += len(after)
    return total / count


def decoding(turns: int, home: Path) -> dict[str, Any]:
    """Tokens per second of a 124M GPT-2: in 8 bits by CTranslate2, in float32 by Transformers.

    Both sample as an exported student does; then both take the most probable token each time.
    """
    preset, temperature = read_settings("laptop", [])["07_deployment"], 1.1
    sampled = {"do_sample": True, "temperature": temperature, "top_k": preset.top_k, "top_p": preset.top_p}
    ours = {"sampling_temperature": temperature, "sampling_topk": preset.top_k, "sampling_topp": preset.top_p}
    (plain, int8), results = made_in(home), {}
    for drawn, theirs, options in (("", sampled, ours), (", greedy", {}, {})):
        decoders = {
            "int8": latency.by_ctranslate2(int8, "t17", **options),
            "transformers": latency.by_transformers(plain, **theirs),
        }
        for size in (1, 32):
            found = take_turns(turns, **{name: partial(rate, decode, size) for name, decode in decoders.items()})
            place = f"at batch {size}{drawn}"
            results[f"tokens per second {place}"] = found
            results[f"int8 over transformers {place}"] = ratio(found, "int8", "transformers")
    return results


def made_in(home: Path) -> tuple[Any, Any]:
    """A 124M GPT-2 with random weights: by Transformers, and in 8 bits by CTranslate2."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    model = latency.model_of("124M").float()
    model.save_pretrained(home / "model")
    words = {name: k for k, name in enumerate(["a", "b", "ab", *(f"t{k}" for k in range(3, model.config.vocab_size))])}
    tokenizer = Tokenizer(models.BPE(words, [("a", "b")]))
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "a")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(home / "model")
    write_ctranslate2(home / "model", home / "int8", "int8")
    threads = torch.get_num_threads()
    return model, import_ctranslate2().Generator(str(home / "int8"), compute_type="int8_float32", intra_threads=threads)


def rate(decode: latency.Decode, size: int) -> float:
    """Tokens per second of so many texts at once."""
    return latency.decoding(decode, size, repeats=1)[0]


def ratios_figure(measured: dict[str, dict[str, float]]) -> Any:
    """Ratios: medians, with the lowest and the highest turn."""
    figure, [axis] = figures.panels(1, width=8.0, height=0.5 * len(measured) + 1)
    for row, value in enumerate(measured.values()):
        spread = [[value["median"] - value["low"]], [value["high"] - value["median"]]]
        axis.errorbar(value["median"], row, xerr=spread, fmt="o", capsize=3, color="C0")
    axis.axvline(1, color="gray", linestyle="--", linewidth=1)
    axis.set(
        xlabel="ratio",
        xscale="log",
        yticks=range(len(measured)),
        yticklabels=measured,
        ylim=(len(measured) - 0.5, -0.5),
    )
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run", type=Path, default=Path("outputs/laptop"), help="run with annotated pairs and a student"
    )
    parser.add_argument("--turns", type=int, default=5, help="turns that both sides of a ratio take")
    parser.add_argument("--only", choices=["notebooks", "training", "decoding"], help="one of the parts")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench"), help="folder of speed.json and speed.png")
    asked = parser.parse_args()
    run = RunFolder(asked.run.resolve())
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        parts = {
            "notebooks": lambda: notebooks(run),
            "training": lambda: training(run, asked.turns, home),
            "decoding": lambda: decoding(asked.turns, home),
        }
        found = {}
        for name in [asked.only] if asked.only else parts:
            print(name, flush=True)
            found[name] = parts[name]()
            ratios = {
                f"{part}: {what}": v for part, values in found.items() for what, v in values.items() if "median" in v
            }
            write_json(asked.out / "speed.json", {"ratios": ratios, **found, "environment": environment()})
    for name, value in ratios.items():
        print(f"{name:60} {value['median']:6.2f} [{value['low']:.2f}, {value['high']:.2f}]")
    figures.save(ratios_figure(ratios), asked.out, "speed")


if __name__ == "__main__":
    main()
