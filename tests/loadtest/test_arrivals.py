"""Schedules of intended send times."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.arrivals import constant_arrivals, poisson_arrivals
from loadtest.errors import LoadtestError


def test_constant_arrivals_are_evenly_spaced_from_zero_and_end_before_the_duration():
    times = constant_arrivals(40, 2.5)
    assert len(times) == 100
    np.testing.assert_allclose(np.diff(times), 1 / 40)
    assert times[0] == 0
    assert times[-1] < 2.5


def test_poisson_arrivals_have_exponential_gaps_of_the_asked_mean():
    times = poisson_arrivals(100, 200, seed=3)
    gaps = np.diff(times)
    assert abs(len(times) - 20_000) < 5 * np.sqrt(20_000)
    assert abs(gaps.std() / gaps.mean() - 1) < 0.05  # exponential: as wide as its mean
    assert abs((gaps > gaps.mean()).mean() - np.exp(-1)) < 0.02
    assert times[-1] < 200


def test_poisson_arrivals_repeat_with_the_seed_and_differ_with_another():
    np.testing.assert_array_equal(poisson_arrivals(50, 5, seed=1), poisson_arrivals(50, 5, seed=1))
    assert not np.array_equal(poisson_arrivals(50, 5, seed=1)[:50], poisson_arrivals(50, 5, seed=2)[:50])


@pytest.mark.parametrize("arrivals", [constant_arrivals, poisson_arrivals])
@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), 1e9])
def test_an_impossible_rate_is_refused_by_name(arrivals, rate):
    with pytest.raises(LoadtestError, match=r"^rate"):
        arrivals(rate, 10, 0)


def test_an_impossible_duration_is_refused_by_name():
    with pytest.raises(LoadtestError, match=r"^duration 0 s"):
        constant_arrivals(10, 0)
