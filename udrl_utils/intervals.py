"""Means with their 95% bootstrap intervals, {"mean", "low", "high"}, and how they are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from udrl_utils.settings import IntervalSettings

if TYPE_CHECKING:
    import numpy


def interval(values: Sequence[float], settings: IntervalSettings) -> dict[str, float]:
    """Mean with its 95% bootstrap interval (percentiles of resampled means); NaN where there are no values."""
    import numpy as np

    values = np.asarray(values, dtype=float)
    if not len(values):
        return dict.fromkeys(("mean", "low", "high"), float("nan"))
    draws = np.random.default_rng(settings.seed).integers(0, len(values), (settings.bootstrap_samples, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def ratio_interval(ours: numpy.ndarray, theirs: numpy.ndarray, settings: IntervalSettings) -> dict[str, float]:
    """Ratio of two means with its 95% bootstrap interval, entries resampled in pairs."""
    import numpy as np

    draws = np.random.default_rng(settings.seed).integers(0, len(ours), (settings.bootstrap_samples, len(ours)))
    low, high = np.percentile(np.nanmean(ours[draws], axis=1) / np.nanmean(theirs[draws], axis=1), [2.5, 97.5])
    return {"mean": float(np.nanmean(ours) / np.nanmean(theirs)), "low": float(low), "high": float(high)}


def written(value: dict[str, float], form: str = ".3g") -> str:
    """A mean with its interval, such as 0.51 [0.48, 0.53]."""
    return f"{value['mean']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"
