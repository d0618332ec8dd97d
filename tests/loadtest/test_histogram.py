"""Percentiles of durations."""

from __future__ import annotations

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram

from loadtest.histogram import percentiles


def test_percentiles_of_known_durations_are_right_to_three_digits():
    found = percentiles(np.random.default_rng(0).permutation(np.arange(1, 10_001)) / 1e4)  # 0.1 .. 1000 ms
    assert found is not None
    assert found.count == 10_000
    assert found.p50_ms == pytest.approx(500.0, rel=1e-3)
    assert found.p95_ms == pytest.approx(950.0, rel=1e-3)
    assert found.p99_ms == pytest.approx(990.0, rel=1e-3)
    assert found.p999_ms == pytest.approx(999.0, rel=1e-3)
    assert found.max_ms == 1000.0


def test_equal_durations_give_that_duration_everywhere_and_nothing_above_the_largest():
    found = percentiles([0.000_683] * 3 + [2.345_678])
    assert found is not None
    assert found.p50_ms == pytest.approx(0.683, rel=1e-3)
    assert found.p999_ms == found.max_ms == pytest.approx(2345.678)


def test_what_was_not_measured_is_left_out_and_nothing_measured_gives_none():
    found = percentiles([float("nan"), 0.010, float("nan")])
    assert found is not None
    assert found.count == 1
    assert percentiles([float("nan")]) is None
    assert percentiles([]) is None


def test_the_stored_histogram_reads_back_with_every_duration():
    found = percentiles([0.001, 0.002, 0.002, 0.300])
    assert found is not None
    back = HdrHistogram.decode(found.histogram)
    assert back.get_total_count() == 4
    assert back.get_count_at_value(2_000_000) == 2
    assert back.get_value_at_percentile(100) == pytest.approx(300e6, rel=1e-3)
