"""A long run: millions of requests while bundles are swapped; memory, descriptors and threads must stay flat.

They are read at every swap. The first part warms up: caches fill, the allocator takes what it needs.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from index_builder.generated_bundle import generate_bundle
from index_builder.publish import Store
from loadtest.errors import LoadtestError
from loadtest.generator import user_id
from loadtest.seeding import seed_users, sequences_from_items
from loadtest.served import Served
from loadtest.stress.crowd import Caller, Crowd, run_crowd
from loadtest.stress.ground import generator_cpu, service_on
from loadtest.stress.outcome import Options, check
from loadtest.stress.swap import Resources, growth_share

NAME = "soak"
GROWTH_LIMIT = 0.02
WARM_UP_SHARE = 0.2
_POOL = 8
"""Connections to Redis that may be made at any time."""


@dataclass(frozen=True)
class Plan:
    """num_requests in all; one swap each num_requests / num_swaps of them"""

    num_requests: int = 5_000_000
    num_swaps: int = 500
    num_connections: int = 48
    num_users: int = 1_000
    num_items: int = 3_706
    dim: int = 64
    top_k: int = 100
    service: tuple[str, ...] = ("--num-inference-steps", "2", "--sampler", "ddim")


SHORT = Plan(num_requests=3_000, num_swaps=6, num_users=50, num_items=300, dim=16, top_k=20)


def run(options: Options) -> dict[str, Any]:
    """5,000,000 requests and 500 swaps; short: 3,000 and 6."""
    return soak_figures(SHORT if options.short else Plan(), options)


def soak_figures(plan: Plan, options: Options) -> dict[str, Any]:
    """The figures of a plan and the checks on them."""
    serve_options = ["--redis-max-connections", str(_POOL), "--redis-read-timeout-ms", "1000", *plan.service]
    with (
        tempfile.TemporaryDirectory(prefix="t2diff-soak-") as folder,
        service_on(NAME, Path(folder), num_items=plan.num_items, dim=plan.dim, options=serve_options) as (
            served,
            store,
        ),
    ):
        return _Soak(plan, options, served, store).figures()


class _Soak:
    def __init__(self, plan: Plan, options: Options, served: Served, store: Store) -> None:
        self.plan, self.options, self.served, self.store = plan, options, served, store
        first = store.current()
        assert first is not None
        other = generate_bundle(store, num_items=plan.num_items, dim=plan.dim, seed=1)
        self.bundles = (first, other)
        self.resources = Resources()
        self.num_swaps = 0
        self.progress = multiprocessing.get_context("spawn").Value("q", 0)

    def figures(self) -> dict[str, Any]:
        plan = self.plan
        items = [f"item-{number}" for number in range(plan.num_items)]
        seed_users(
            self.served.url,
            sequences_from_items(items, num_users=plan.num_users, events_per_user=50, seed=1),
            lambda done: None,
        )
        crowd = Crowd(
            self.served.url,
            [Caller(user_id(number)) for number in range(1, plan.num_users + 1)],
            plan.top_k,
            plan.num_requests,
            plan.num_connections,
            cpu=generator_cpu(),
        )
        crowded = run_crowd(crowd, self.progress, self._swap_when_due)
        in_crowd = slice(int(WARM_UP_SHARE * plan.num_swaps), self.num_swaps)
        while self.num_swaps < plan.num_swaps:  # those that the crowd outran, which are not compared
            self._swap()
        rss = self.resources.rss_bytes[in_crowd]
        descriptors, threads = self.resources.file_descriptors[in_crowd], self.resources.threads[in_crowd]
        return {
            "plan": vars(plan),
            "allocator": {name: os.environ.get(name) for name in _ALLOCATOR},
            "num_requests": sum(crowded.outcomes.values()),
            "num_swaps": self.num_swaps,
            "seconds": round(crowded.seconds, 1),
            "outcomes": dict(crowded.outcomes.most_common()),
            "rss_mib": [round(value / 2**20, 1) for value in self.resources.rss_bytes],
            "file_descriptors": descriptors[:: max(1, plan.num_swaps // 50)],
            "threads": threads[:: max(1, plan.num_swaps // 50)],
            "checks": [
                check("growth of resident memory after the warm-up", growth_share(rss), GROWTH_LIMIT),
                check("file descriptors gained", _gained(descriptors), _POOL),
                check("threads gained", _gained(threads), 0),
                check("wrong or failed answers", crowded.num_wrong + crowded.num_failed, 0),
                check("requests missing", plan.num_requests - sum(crowded.outcomes.values()), 0),
                check("swaps missing", plan.num_swaps - self.num_swaps, 0),
            ],
        }

    def _swap_when_due(self) -> None:
        due = self.progress.value * self.plan.num_swaps // self.plan.num_requests
        if self.num_swaps < min(due, self.plan.num_swaps):
            self._swap()

    def _swap(self) -> None:
        started = time.monotonic()
        self.num_swaps += 1
        publish_and_reload(self.served, self.store, self.bundles[self.num_swaps % 2])
        self.resources.note(self.served.process.pid, time.monotonic() - started)
        if self.num_swaps % max(1, self.plan.num_swaps // 20) == 0:
            rss = self.resources.rss_bytes[-1] / 2**20
            self.options.say(f"{self.num_swaps} swaps, {self.progress.value} requests, {rss:.0f} MiB")


def _gained(numbers: list[int]) -> int | None:
    """How many more the second half has than the first, each at its least, for some come and go."""
    half = len(numbers) // 2
    if not half:
        return None
    return min(numbers[half:]) - min(numbers[:half])


_ALLOCATOR = ("MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "LD_PRELOAD")


def publish_and_reload(served: Served, store: Store, bundle: str) -> None:
    """Let the service serve `bundle` from now on. Raises LoadtestError when it does not."""
    store.publish(bundle)
    request = urllib.request.Request(f"{served.admin_url}/admin/reload", method="POST")
    with urllib.request.urlopen(request, timeout=120) as response:
        outcome = json.loads(response.read())
    if outcome != {"outcome": "loaded", "bundle": bundle}:
        raise LoadtestError(f"the swap to {bundle} came to {outcome}")
