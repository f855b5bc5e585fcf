"""Outcomes of samples, summed up: shares, means and medians with bootstrap 95 % intervals."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bootstrap import percentile_interval, resample_counts
from .outcomes import F1_THRESHOLDS, Outcomes

CENTER_THRESHOLDS_M = (0.10, 0.25, 0.50)
IOU_THRESHOLDS = (0.25, 0.50)

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """Which outcome is read, what is made of each value, and whether the mean or the median of the samples is taken."""

    outcome: str
    of_value: Callable[[Values], Values]
    is_median: bool = False

    def values(self, outcomes: Outcomes) -> Values:
        """One value a sample, NaN where the metric does not apply."""
        values = outcomes[self.outcome]
        return np.where(np.isnan(values), np.nan, self.of_value(values))


def _as_is(values: Values) -> Values:
    return values


def _percent(values: Values) -> Values:
    return 100.0 * values


def _at_most(limit: float) -> Callable[[Values], Values]:
    return lambda values: 100.0 * (values <= limit)


def _at_least(limit: float) -> Callable[[Values], Values]:
    return lambda values: 100.0 * (values >= limit)


def _finite(values: Values) -> Values:
    return np.where(np.isfinite(values), values, np.nan)


METRICS: dict[str, Metric] = {
    "parse_rate": Metric("parsed", _percent),
    "schema_validity": Metric("valid", _percent),
    "action_accuracy": Metric("action_right", _percent),
    "label_accuracy": Metric("label_right", _percent),
    "center_error_median_m": Metric("center_error", _as_is, is_median=True),
    "center_error_median_placed_m": Metric("center_error", _finite, is_median=True),
    **{f"center_within_{limit:.2f}_m": Metric("center_error", _at_most(limit)) for limit in CENTER_THRESHOLDS_M},
    "extent_error_median_placed_m": Metric("extent_error", _as_is, is_median=True),
    "normal_angle_median_placed_deg": Metric("normal_angle", _as_is, is_median=True),
    "normal_within_15_deg_placed": Metric("normal_angle", _at_most(15.0)),
    "iou_mean": Metric("iou", _as_is),
    **{f"iou_over_{limit:.2f}": Metric("iou", _at_least(limit)) for limit in IOU_THRESHOLDS},
    **{
        f"{name}@{threshold:.2f}": Metric(f"{name}@{threshold:.2f}", _percent)
        for threshold in F1_THRESHOLDS
        for name in ("precision", "recall", "f1")
    },
    "count_accuracy": Metric("count_right", _percent),
}


def row_of(outcomes: Outcomes, members: NDArray[np.intp], num_resamples: int, seed: int) -> dict[str, Any]:
    """{count: {..}, scores: {metric: value}, intervals: {metric: [low, high]}} of the samples `members`.

    A metric that applies to none of them is left out; an infinite median (more than half failed) is None.
    """
    values = {name: metric.values(outcomes)[members] for name, metric in METRICS.items()}
    values = {name: column for name, column in values.items() if not np.isnan(column).all()}
    once = np.ones((1, len(members)))
    num_single = int(np.count_nonzero(~np.isnan(outcomes["label_right"][members])))
    count = {"all": len(members), "place_anchor": num_single, "place_anchors": len(members) - num_single}
    row: dict[str, Any] = {"count": count}
    row["scores"] = {name: _or_none(_summarise(name, column, once)[0]) for name, column in values.items()}
    if num_resamples > 0:
        draws: dict[str, list[Values]] = {name: [] for name in values}
        for counts in resample_counts(len(members), num_resamples, seed):
            for name, column in values.items():
                draws[name].append(_summarise(name, column, counts))
        row["intervals"] = {name: _interval(np.concatenate(parts)) for name, parts in draws.items()}
    return row


def _summarise(name: str, column: Values, counts: Values) -> Values:
    """Mean or median of `column` [samples] in each resample of `counts` [resamples, samples]; NaN entries stay out."""
    applies = ~np.isnan(column)
    column, counts = column[applies], counts[:, applies]
    if METRICS[name].is_median:
        return _weighted_medians(column, counts)
    totals = counts.sum(axis=1)
    return np.divide(counts @ column, totals, out=np.full(len(counts), np.nan), where=totals > 0)


def _weighted_medians(column: Values, counts: Values) -> Values:
    order = np.argsort(column)
    ranked, cumulative = column[order], np.cumsum(counts[:, order], axis=1)
    totals = cumulative[:, -1:]
    lower = ranked[(cumulative > (totals - 1) // 2).argmax(axis=1)]
    upper = ranked[(cumulative > totals // 2).argmax(axis=1)]
    return np.where(totals[:, 0] > 0, (lower + upper) / 2.0, np.nan)


def _interval(draws: Values) -> list[float | None]:
    """A resample in which the metric applies to no sample says nothing and is left out."""
    return [_or_none(bound) for bound in percentile_interval(draws[~np.isnan(draws)])]


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
