"""Figures over seeds: the mean and the deviation of the sample, never the best run."""

import statistics
from collections.abc import Sequence


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """The deviation is that of the sample (n - 1); None for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def mean_text(values: Sequence[float]) -> str:
    """Like "0.123 ± 0.004"; a single value stands alone."""
    mean, deviation = mean_and_deviation(values)
    return f"{mean:.3f}" if deviation is None else f"{mean:.3f} ± {deviation:.3f}"
