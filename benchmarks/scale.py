"""Minutes and memory of every stage but the learning itself, on growing numbers of pairs.

    python benchmarks/scale.py 100000 1000000

Each stage runs in a process of its own, whose peak memory and CPU minutes, which do not depend on what else the machine
does, are read when it ends. Hashed words stand in for sentence embeddings, which take the same memory at any size; the
speed of the real encoder is measured by `--embed 100000`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import resource
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from udrl_utils import rewards
from udrl_utils.machine import peak_memory
from udrl_utils.ontology import ontology_intents
from udrl_utils.runs import RunFolder
from udrl_utils.settings import ROOT, AnnotationSettings, DistillationSettings, TrainingSettings, resolve
from udrl_utils.tasks import TASKS
from udrl_utils.teachers.recorded import recorded_sets
from udrl_utils.text import distinct

PER_INTENT = 8


class HashedWords:
    """Unit vectors of words hashed to 384 dimensions, in place of the encoder."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), 384), dtype=np.float32)
        for row, text in zip(vectors, texts, strict=True):
            for word in text.split():
                row[zlib.crc32(word.encode()) % 384] += 1
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)

    def forget(self) -> None:
        """Nothing is kept."""


def made_pairs(pairs: int, file: Path) -> None:
    """Write so many pairs: intents of the ontology, and recorded prompts with their intent before them."""
    drawn = {task: ontology_intents(0, task) for task in TASKS}
    recorded = {task: [] for task in TASKS}
    for (task, _), prompts in recorded_sets().items():
        recorded[task] += prompts
    endings = {task: itertools.cycle(prompts) for task, prompts in recorded.items()}
    asked = distinct((task, next(intents)) for task, intents in itertools.cycle(drawn.items()))
    sets = itertools.islice(asked, pairs // PER_INTENT)
    rows = ((task, intent, f"{intent}, {next(endings[task])}") for task, intent in sets for _ in range(PER_INTENT))
    columns = list(zip(*rows, strict=True))
    pd.DataFrame(dict(zip(("task", "intent", "prompt"), columns, strict=True))).to_parquet(file, index=False)


def values(pairs: int) -> dict:
    """The laptop preset for so many pairs, and one pass of the smoke preset's student over them."""
    presets = ROOT / "notebooks" / "presets"
    small = yaml.safe_load((presets / "smoke.yaml").read_text())
    shape = {name: small[name] for name in ("base", "vocab_size", "n_layer", "n_head", "n_embd", "horizon")}
    file = Path(os.environ["UDRL_OUTPUTS"]) / f"pairs-{pairs}.parquet"
    if not file.exists():
        made_pairs(pairs, file)
    one = {"epochs": 1, "batch_size": 64, "plain_sft": False, "rounds": 0}
    given = {"pairs": str(file), "max_words": 200, "shard_size": 2500}
    return shape | one | given | {"run": f"scale-{pairs}", "workers": os.environ.get("WORKERS", "local")}


def distil_stage(pairs: int) -> int:
    """01: given pairs, filters, near-duplicates, shards."""
    from udrl_utils.pairs import distil

    settings = resolve(DistillationSettings, values(pairs))
    run = RunFolder(settings.run).start("01_pairs", settings)
    counts, usage = distil(settings, run)
    run.finish("01_pairs", settings, counts=counts, usage=usage)
    return counts["kept"]


def annotate_stage(pairs: int) -> int:
    """02: rewards of every shard, with hashed words."""
    rewards.Encoder = HashedWords
    settings = resolve(AnnotationSettings, values(pairs))
    run = RunFolder(settings.run).start("02_annotated", settings)
    rows = len(rewards.annotate_run(settings, run))
    run.finish("02_annotated", settings)
    return rows


def rows_stage(pairs: int) -> int:
    """03 up to the first step: codec, tokenizer, training rows, tokens, order of batches."""
    from udrl_utils.rows import command_pairs
    from udrl_utils.trainer import make_trainer, untrained
    from udrl_utils.training import fit_codec, train_rows

    settings = resolve(TrainingSettings, values(pairs))
    run = RunFolder(settings.run).start("03_student", settings)
    train = train_rows(settings, run)
    codec = fit_codec(settings, run, train)
    model, tokenizer, _ = untrained(settings, codec, train)
    data = command_pairs(train, codec, settings, tokenizer, folder=run / "03_student" / "rows")
    del train
    trainer = make_trainer(model, tokenizer, settings, run / "03_student", data, data.select(range(100)))
    next(iter(trainer.get_train_dataloader()))
    return len(trainer.train_dataset)


def train_stage(pairs: int) -> int:
    """03: one pass of a student of 0.2M parameters over all pairs."""
    from udrl_utils.training import train_student

    settings = resolve(TrainingSettings, values(pairs))
    run = RunFolder(settings.run).start("03_student", settings)
    return train_student(settings, run).entries[-1]["step"]


STAGES = {"01 distil": distil_stage, "02 annotate": annotate_stage, "03 rows, tokens": rows_stage}
TRAINING = {"03 one pass": train_stage}


def measured(stage: Callable[[int], int], pairs: int) -> dict[str, float]:
    """Rows, minutes and peak memory of a stage in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=report, args=(stage, pairs, theirs))
    process.start()
    theirs.close()
    result = ours.recv()
    process.join()
    return result


def report(stage: Callable[[int], int], pairs: int, pipe) -> None:
    began = time.monotonic()
    rows = stage(pairs)
    used = resource.getrusage(resource.RUSAGE_SELF)
    minutes = {"minutes": (time.monotonic() - began) / 60, "CPU minutes": (used.ru_utime + used.ru_stime) / 60}
    pipe.send({"rows": rows, **minutes, "peak GiB": peak_memory() / 2**30})


def embed_stage(texts: int) -> int:
    """Texts of a made run through the real encoder."""
    from udrl_utils.pairs import read_pairs

    smallest = min(Path(os.environ["UDRL_OUTPUTS"]).glob("scale-*"), key=lambda path: int(path.name.split("-")[1]))
    prompts = read_pairs(RunFolder(smallest)).prompt.head(texts)
    rewards.Encoder("minilm")(list(prompts))
    return len(prompts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=int, nargs="+", help="numbers of pairs asked for")
    parser.add_argument("--embed", type=int, default=0, help="texts to embed with the real encoder; 0 for none")
    parser.add_argument("--train", action="store_true", help="train a small student for one pass, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["UDRL_OUTPUTS"] = folder
        for pairs in arguments.pairs:
            for name, stage in (STAGES | (TRAINING if arguments.train else {})).items():
                print(json.dumps({"pairs": pairs, "stage": name, **measured(stage, pairs)}), flush=True)
        if arguments.embed:
            print(json.dumps({"stage": "embed", **measured(embed_stage, arguments.embed)}), flush=True)


if __name__ == "__main__":
    main()
