"""What one GPU makes of training, embeddings and decoding, beside what it could.

    udrl run --preset gpu --to 3
    python benchmarks/gpu.py --run outputs/gpu

Training counts 6 floating-point operations per parameter and token (Kaplan et al., arXiv 2001.08361) against what a
large matrix product reaches in the same run. Decoding is Transformers' own `generate`, 16 tokens read, 32 written.
The student is decoded in float32, as it is loaded, the others in bfloat16. Prints what it measures; writes gpu.json.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import speed
import torch

from udrl_utils.deploy import latency
from udrl_utils.machine import device_and_dtype, environment
from udrl_utils.runs import RunFolder, write_json
from udrl_utils.student import Student

SIDE, PRODUCTS = 8192, 20  # of the square matrices that show what the GPU can, and how many products are timed


def flops() -> float:
    """Floating-point operations per second of a product of large random matrices in the machine's number format."""
    device, dtype, _ = device_and_dtype()
    a, b = torch.randn(2, SIDE, SIDE, device=device, dtype=dtype)
    a @ b
    began = speed.now()
    for _ in range(PRODUCTS):
        a @ b
    return 2 * SIDE**3 * PRODUCTS / (speed.now() - began)


def training(run: RunFolder, turns: int) -> dict[str, Any]:
    """Tokens per second and share of what the GPU can, of our trainer, TRL's and a bare loop on our batches."""
    with tempfile.TemporaryDirectory() as home:
        found = speed.training(run, turns, Path(home))
    parameters, most = Student.load(run / "03_student").model.num_parameters(), flops()
    shares = {name: 6 * parameters * median(rates) / most for name, rates in found["tokens per second"].items()}
    return {**found, "parameters": parameters, "flops": most, "share of them": shares}


def decoding(run: RunFolder, batch_sizes: list[int]) -> dict[str, dict[str, Any]]:
    """Tokens per second by batch size, of the student and of models of other sizes, and the memory of their weights."""
    found = {}
    for name in ["student", *latency.SHAPES]:
        model = Student.load(run / "03_student").model if name == "student" else latency.model_of(name)
        decode = latency.by_transformers(model)
        rates = {size: max(latency.decoding(decode, size)) for size in batch_sizes}
        gigabytes = model.num_parameters() * model.dtype.itemsize / 1e9
        found[name] = {"parameters": model.num_parameters(), "weights_gb": gigabytes, "tokens_per_second": rates}
        print(name, found[name], flush=True)
        del model, decode
        torch.cuda.empty_cache()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run with annotated pairs and a student")
    parser.add_argument("--turns", type=int, default=5, help="turns that both sides of a ratio take")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 32, 256], help="texts decoded at once")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench"), help="folder of gpu.json")
    asked = parser.parse_args()
    if device_and_dtype()[0] != "cuda":
        raise SystemExit("no GPU here: benchmarks/speed.py measures processors")
    run = RunFolder(asked.run.resolve())
    found: dict[str, Any] = {"environment": environment()}
    parts = {
        "decoding": lambda: decoding(run, asked.batch_sizes),
        "annotation": lambda: speed.annotation(run, asked.turns, pairs=20_000),
        "training": lambda: training(run, asked.turns),
    }
    for name, measure in parts.items():
        found[name] = measure()
        write_json(asked.out / "gpu.json", found)
        print(name, found[name], flush=True)


if __name__ == "__main__":
    main()
