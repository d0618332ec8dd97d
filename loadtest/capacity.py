"""How many machines a load takes: from measured times and sizes to cores, memory and cost, and a simulation
of the queue that checks what the arithmetic leaves out: how long requests wait at that utilisation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_GIB = 2**30
_DAY_S = 86_400


@dataclass(frozen=True)
class Load:
    """What is asked of the service.

    users: with a stored sequence   items: that can be recalled   requests_per_user: a day, on average
    peak: the busiest hour over the average one
    """

    users: float
    items: float
    requests_per_user: float = 5.0
    peak: float = 2.5

    @property
    def peak_rps(self) -> float:
        """Requests a second in the busiest hour."""
        return self.users * self.requests_per_user * self.peak / _DAY_S


@dataclass(frozen=True)
class Measured:
    """What one core was measured to do; the defaults are those of docs/scaling.md.

    tower_us: a sample, any batch size   overhead_us: HTTP, Redis client and Python, a request
    search_us: of `search_items` items, top 100; beyond them it grows with the square root of the catalogue
    batch_us: once a batch   bytes_per_item: index, embeddings and ids
    bytes_per_user: of Redis, 200 behaviours   process_bytes: of a service without items
    """

    tower_us: float = 520.0
    overhead_us: float = 440.0
    search_us: float = 80.0
    search_items: float = 108_000.0
    batch_us: float = 60.0
    bytes_per_item: float = 640.0
    bytes_per_user: float = 5_000.0
    process_bytes: float = 0.6 * _GIB

    def request_us(self, items: float) -> float:
        """Processor time of a request at the knee, where batches are full and share `batch_us`."""
        return (
            self.tower_us + self.overhead_us + self.search_us * math.sqrt(max(1.0, items / self.search_items))
        )


@dataclass(frozen=True)
class Prices:
    """Of whoever rents the machines: yours go in here.   a core's and a GiB's hour, in one currency"""

    core_hour: float = 0.04
    gib_hour: float = 0.005


@dataclass(frozen=True)
class Plan:
    """What a load takes.   cores: of the service, one replica each   month: cost of 730 hours"""

    peak_rps: float
    request_us: float
    cores: int
    gib_per_replica: float
    redis_gib: float
    month: float


def plan(
    load: Load, measured: Measured = Measured(), prices: Prices = Prices(), *, utilisation: float = 0.6
) -> Plan:
    """utilisation: of each core in the busiest hour; see `simulate` for what it does to waiting

    Raises ValueError for a number that makes no sense.
    """
    if not 0 < utilisation < 1:
        raise ValueError(f"utilisation must lie between 0 and 1, got {utilisation:g}")
    if min(load.users, load.items, load.requests_per_user) <= 0 or load.peak < 1:
        raise ValueError("users, items and requests per user must be positive, and peak at least 1")
    request_us = measured.request_us(load.items)
    cores = max(2, math.ceil(load.peak_rps * request_us / 1e6 / utilisation))  # two: one may be restarting
    gib_per_replica = (measured.process_bytes + load.items * measured.bytes_per_item) / _GIB
    redis_gib = 2 * load.users * measured.bytes_per_user / _GIB  # a replica of each
    hourly = cores * (prices.core_hour + gib_per_replica * prices.gib_hour) + redis_gib * prices.gib_hour
    return Plan(load.peak_rps, request_us, cores, gib_per_replica, redis_gib, 730 * hourly)


@dataclass(frozen=True)
class Waiting:
    """Of simulated requests, in milliseconds, from arrival to answer.   batch: mean size"""

    p50_ms: float
    p99_ms: float
    batch: float


def simulate(
    rate: float,
    *,
    sample_us: float,
    batch_us: float,
    max_batch: int = 32,
    num_requests: int = 200_000,
    seed: int = 0,
) -> Waiting:
    """One core that always takes what waits, up to `max_batch`, as the service's batcher does.

    Arrivals are Poisson; a batch of b takes batch_us + b * sample_us.
    """
    capacity = max_batch / ((batch_us + max_batch * sample_us) / 1e6)
    if not 0 < rate < capacity:
        raise ValueError(
            f"a rate of {rate:g}/s has no steady state: one core does {capacity:.0f}/s at the most"
        )
    arrival = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, num_requests))
    answered = np.empty(num_requests)
    now, first, batches = 0.0, 0, 0
    while first < num_requests:
        now = max(now, arrival[first])
        last = min(int(np.searchsorted(arrival, now, side="right")), first + max_batch)
        now += (batch_us + (last - first) * sample_us) / 1e6
        answered[first:last] = now
        first, batches = last, batches + 1
    p50, p99 = np.percentile((answered - arrival) * 1000, [50, 99])
    return Waiting(float(p50), float(p99), num_requests / batches)
