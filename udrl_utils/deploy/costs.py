"""Tables and a figure of what systems cost and what engines keep of a student; metrics go in, nothing is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from udrl_utils.evaluation import written
from udrl_utils.figures import labelled, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def costs_table(metrics: dict[str, Any]) -> pd.DataFrame:
    """One row per system whose cost is known: parameters, weights, seconds per set with their 95% interval."""
    rows = {}
    for system, cost in metrics["costs"].items():
        seconds = cost["seconds_per_set"]
        rows[labelled([system])[system]] = {
            "parameters [M]": f"{cost['parameters'] / 1e6:.1f}" if cost["parameters"] else "on a server",
            "weights [MB]": f"{cost['weights_mb']:.0f}" if cost["weights_mb"] else "on a server",
            "seconds per set": written(seconds, ".2f") if seconds else "",
        }
    return pd.DataFrame(rows).T


def quality_table(metrics: dict[str, Any]) -> pd.DataFrame:
    """One row per engine: how well it obeys commands, and its sets relative to the first engine and to the first one
    that samples in the same way."""
    rows = {}
    for name, found in metrics["quality"].items():
        obeyed = {f"{reward} Spearman": round(values["spearman"], 3) for reward, values in found["calibration"].items()}
        within = found["calibration"].get("length", {}).get("within_1")
        ratios = {
            f"{reward} {words}": written(ratio, ".1%")
            for kind, words in {"relative": "relative", "relative_alike": "relative, same sampling"}.items()
            for reward, ratio in found[kind].items()
        }
        rows[name] = {**obeyed, "length within 1": "" if within is None else f"{within:.1%}", **ratios}
    return pd.DataFrame(rows).T


def engines_table(metrics: dict[str, Any]) -> pd.DataFrame:
    """One row per engine: cold start, memory, latency."""
    rows = {
        name: {
            "weights [MB]": f"{cost['weights_mb']:.1f}",
            "memory [MB]": f"{cost['memory_mb']:.0f}",
            "loaded after [s]": f"{cost['load_s']:.2f}",
            "first word after [s]": f"{cost['first_word_s']:.2f}",
            "first prompt after [s]": f"{cost['first_prompt_s']:.2f}",
            "p50 [ms]": f"{cost['p50_s'] * 1000:.0f}",
            "p95 [ms]": f"{cost['p95_s'] * 1000:.0f}",
            **{f"prompts/s at {size}": f"{rate:.0f}" for size, rate in cost["prompts_per_second"].items()},
        }
        for name, cost in metrics["engines"].items()
    }
    return pd.DataFrame(rows).T


def shapes_table(metrics: dict[str, Any]) -> pd.DataFrame:
    """One row per model: parameters, weights, tokens per second, and both as multiples of the last exported student."""
    ours = [values for name, values in metrics["shapes"].items() if name.startswith("student")][-1]
    rows = {
        name: {
            "parameters [M]": f"{values['parameters'] / 1e6:.1f}",
            "weights [MB]": f"{values['weights_mb']:.0f}",
            "tokens/s": f"{values['tokens_per_second']['mean']:.3g}",
            "times the weights": f"{values['weights_mb'] / ours['weights_mb']:.3g}",
            "times slower": f"{ours['tokens_per_second']['mean'] / values['tokens_per_second']['mean']:.3g}",
        }
        for name, values in metrics["shapes"].items()
    }
    return pd.DataFrame(rows).T


def throughput(metrics: dict[str, Any]) -> Figure:
    """Prompts per second of each engine against the batch size."""
    figure, [axis] = panels(1, width=5.4)
    for name, cost in metrics["engines"].items():
        sizes, rates = zip(*((int(size), rate) for size, rate in cost["prompts_per_second"].items()), strict=True)
        axis.plot(sizes, rates, marker="o", label=name)
    axis.set(xlabel="prompts written at once", ylabel="prompts per second", xscale="log", yscale="log")
    axis.set_xticks(sizes, labels=map(str, sizes))
    axis.legend(frameon=False, fontsize=8)
    return figure
