"""Two sets of answers to the same questions: which is better, and could it be chance?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from metrics.room_actions.bootstrap import bootstrap_sums, percentile_interval

from .scoring import RIGHT, UNLABELLED, TaskScores

NUM_RESAMPLES = 10_000


def mcnemar_exact(num_only_first: int, num_only_second: int) -> float:
    """Two-sided p-value that a disagreement favours either side equally (McNemar 1947, exact binomial form)."""
    total = num_only_first + num_only_second
    return 1.0 if total == 0 else float(binomtest(num_only_first, total, 0.5).pvalue)


def paired_bootstrap(differences: Sequence[float], num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Mean of paired differences, its 95 % percentile interval and a two-sided p-value for a mean of 0.

    The p-value is twice the share of resampled means on the other side of zero, counting the data themselves as one.
    """
    values = np.asarray(differences, dtype=np.float64)
    means = bootstrap_sums(values[:, None], num_resamples, seed)[:, 0] / len(values)
    tail = min((means <= 0).sum(), (means >= 0).sum())
    p_value = min(1.0, 2.0 * (float(tail) + 1.0) / (num_resamples + 1.0))
    return {
        "difference": float(values.mean()),
        "interval": list(percentile_interval(means)),
        "p": 1.0 if not values.any() else p_value,
    }


def compare_scores(first: TaskScores, second: TaskScores) -> dict[str, Any]:
    """What changes from the first to the second, on the same samples in the same order.

    Returns:
        {count, right: {both, only_first, only_second, neither, p}, metrics: {name: {first, second, difference (second
        minus first), interval, p, count}}}: `right` by the exact McNemar test, metrics by the paired bootstrap.

    Raises:
        ValueError: numbers of samples that differ.
    """
    if len(first.verdicts) != len(second.verdicts):
        raise ValueError(f"{len(first.verdicts)} samples cannot be paired with {len(second.verdicts)}")
    scored = [pair for pair in zip(first.verdicts, second.verdicts) if UNLABELLED not in pair]
    counts = {
        "both": sum(a == RIGHT and b == RIGHT for a, b in scored),
        "only_first": sum(a == RIGHT != b for a, b in scored),
        "only_second": sum(b == RIGHT != a for a, b in scored),
        "neither": sum(RIGHT not in pair for pair in scored),
    }
    p_value = mcnemar_exact(counts["only_first"], counts["only_second"])
    shared = [name for name in first.samples if name in second.samples]
    metrics = {name: _compare_metric(first.samples[name], second.samples[name]) for name in shared}
    return {"count": len(scored), "right": {**counts, "p": p_value}, "metrics": metrics}


def _compare_metric(first: Sequence[float | None], second: Sequence[float | None]) -> dict[str, Any]:
    a, b = _paired(first, second)
    return {"first": float(a.mean()), "second": float(b.mean()), **paired_bootstrap(b - a), "count": len(a)}


def _paired(
    first: Sequence[float | None], second: Sequence[float | None]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values of the samples that have both; a metric applies to a sample, not to an answer, so none is lost."""
    pairs = [pair for pair in zip(first, second, strict=True) if None not in pair]
    columns = np.asarray(pairs, dtype=np.float64).reshape(-1, 2).T
    return columns[0], columns[1]
