"""Durations in high-dynamic-range histograms: percentiles to three digits from 1 µs to 10 minutes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from hdrh.histogram import HdrHistogram

_LOWEST_NS, _HIGHEST_NS, _DIGITS = 1_000, 600_000_000_000, 3
# The points of a latency curve: dense where the tail is.
CURVE = (0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 97.5, 99.0, 99.5, 99.75, 99.9, 99.95, 99.99, 100.0)


@dataclass(frozen=True)
class Percentiles:
    """What a report says about one set of durations; milliseconds."""

    count: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    curve: tuple[tuple[float, float], ...]  # (percentile, ms)
    histogram: str  # HdrHistogram V2, base64, nanoseconds: merge or re-read it with any HDR library


def percentiles(durations_s: Sequence[float] | np.ndarray) -> Percentiles | None:
    """Summarise durations. durations_s: (n,) seconds, NaN where nothing was measured -> None when all are."""
    seconds = np.asarray(durations_s, dtype=np.float64)
    seconds = seconds[~np.isnan(seconds)]
    if seconds.size == 0:
        return None
    nanoseconds = np.clip(np.rint(seconds * 1e9), _LOWEST_NS, _HIGHEST_NS).astype(np.int64)
    histogram = HdrHistogram(_LOWEST_NS, _HIGHEST_NS, _DIGITS)
    values, counts = np.unique(nanoseconds, return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        histogram.record_value(value, count)

    def at(percentile: float) -> float:
        # A bucket's upper edge may lie a little above the largest value seen: never report more than that.
        return min(histogram.get_value_at_percentile(percentile), int(nanoseconds.max())) / 1e6

    return Percentiles(
        count=int(seconds.size),
        p50_ms=at(50),
        p95_ms=at(95),
        p99_ms=at(99),
        p999_ms=at(99.9),
        max_ms=int(nanoseconds.max()) / 1e6,
        curve=tuple((point, at(point)) for point in CURVE),
        histogram=histogram.encode().decode("ascii"),
    )
