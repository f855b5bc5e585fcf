"""Bootstrap percentile intervals for statistics of sums over samples.

A metric loaded by path sees only the files of its own folder, so scene_qa and room_actions hold equal copies of this
file.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
_CELLS_PER_CHUNK = 1_000_000


def resample_counts(num_samples: int, num_resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each sample is drawn in each resample, in chunks [resamples of the chunk, num_samples].

    The draws depend on the three arguments alone, so two metrics of the same samples see the same resamples.
    """
    generator = np.random.default_rng(seed)
    rows_per_chunk = max(1, _CELLS_PER_CHUNK // num_samples)
    for start in range(0, num_resamples, rows_per_chunk):
        rows = min(rows_per_chunk, num_resamples - start)
        drawn = generator.integers(num_samples, size=(rows, num_samples)) + np.arange(rows)[:, None] * num_samples
        counts = np.bincount(drawn.ravel(), minlength=rows * num_samples)
        yield counts.reshape(rows, num_samples).astype(np.float64)


def bootstrap_sums(values: NDArray[np.float64], num_resamples: int, seed: int) -> NDArray[np.float64]:
    """Sums over resamples of the rows of `values` [num_samples, num_columns]: [num_resamples, num_columns]."""
    return np.concatenate([counts @ values for counts in resample_counts(len(values), num_resamples, seed)])


def percentile_interval(draws: NDArray[np.float64]) -> tuple[float, float]:
    """The central 95 % of bootstrap draws [num_resamples] (Efron's percentile interval); draws may be infinite."""
    tail = 50.0 * (1.0 - CONFIDENCE)
    low, high = np.percentile(draws, [tail, 100.0 - tail], method="inverted_cdf")
    return float(low), float(high)
