"""When each request of a load test is meant to be sent: schedules drawn up before the first one goes out.

An open-loop client sends by this clock whether or not earlier answers have come back, and latency is
counted from the intended time. A server that stalls therefore shows in every request that fell into
the stall, not only in the one that happened to be waiting (coordinated omission; G. Tene, "How NOT to
measure latency", 2013).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from loadtest.errors import LoadtestError

MAX_REQUESTS = 5_000_000  # samples are kept in memory, about 110 bytes each

Arrivals = Callable[[float, float, int], np.ndarray]


def constant_arrivals(rate: float, duration_s: float, seed: int = 0) -> np.ndarray:
    """Evenly spaced intended send times.

    rate: requests/s   duration_s: seconds   seed: unused, so that all schedules share one signature
    -> (n,) float64 seconds from the start, ascending, all < duration_s
    """
    check_schedule(rate, duration_s)
    return np.arange(max(1, round(rate * duration_s)), dtype=np.float64) / rate


def poisson_arrivals(rate: float, duration_s: float, seed: int = 0) -> np.ndarray:
    """Intended send times with independent exponential gaps of mean 1/rate, as from many unrelated callers.

    Arguments and result as in `constant_arrivals`; the number of requests varies with the seed.
    """
    check_schedule(rate, duration_s)
    expected = rate * duration_s
    enough = int(expected + 6 * math.sqrt(expected) + 16)  # six standard deviations beyond the mean
    times = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, size=enough))
    return times[times < duration_s]


ARRIVALS: dict[str, Arrivals] = {"constant": constant_arrivals, "poisson": poisson_arrivals}


def check_schedule(rate: float, duration_s: float) -> None:
    """Raise LoadtestError unless a schedule of this rate and duration can be drawn up and kept in memory."""
    if not (math.isfinite(rate) and rate > 0):
        raise LoadtestError(f"rate {rate:g} must be a positive number of requests per second")
    if not (math.isfinite(duration_s) and duration_s > 0):
        raise LoadtestError(f"duration {duration_s:g} s must be positive")
    if rate * duration_s > MAX_REQUESTS:
        raise LoadtestError(
            f"rate {rate:g}/s for {duration_s:g} s is more than {MAX_REQUESTS:,} requests: shorten it"
        )
