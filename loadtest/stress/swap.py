"""Swaps under load: two bundles published in turn while requests arrive at a steady rate.

The bundles share no item, and each user's answer of each is known beforehand: an answer is wrong when an item
or the scores are not those of the bundle that it names. Quiet stretches and stretches with swaps take turns,
so that whatever else the machine does weighs on both alike. Memory, descriptors and threads of the service
are read after every swap.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from index_builder.generated_bundle import generate_bundle
from index_builder.publish import Store
from loadtest.errors import LoadtestError
from loadtest.generator import MAX_CONNECTIONS, WRONG_ANSWER, Samples
from loadtest.histogram import percentiles
from loadtest.probe import ProbeSettings, draw_up, run_generator
from loadtest.seeding import seed_users
from loadtest.served import Served, started_service
from loadtest.stress.expected_answers import PREFIXES, Expected, quiet_scores, shared_histories
from loadtest.stress.outcome import Options, check

NAME = "swap"
P99_RATIO_LIMIT = 1.5
GROWTH_LIMIT = 0.02
"""Of resident memory over the last 400 swaps, by a straight line through them: a leak of one of these bundles
each swap would be many times as much, measuring noise is a fraction."""
_FLAT_OVER = 400
_REDIS_CONNECTIONS = 8


@dataclass(frozen=True)
class Plan:
    """rate: requests/s   interval_s: from one swap to the next

    quiet_s: length of a stretch without swaps   warmup_s: of each stretch, not counted
    """

    num_swaps: int = 500
    swaps_per_stretch: int = 25
    interval_s: float = 1.0
    quiet_s: float = 6.0
    rate: float = 200.0
    warmup_s: float = 2.0
    num_items: int = 3_706
    dim: int = 64
    num_users: int = 200
    top_k: int = 20


SHORT = Plan(
    num_swaps=10,
    swaps_per_stretch=10,
    interval_s=0.3,
    quiet_s=1.0,
    rate=50,
    warmup_s=0.5,
    num_items=300,
    dim=16,
    num_users=20,
)


@dataclass
class Resources:
    """Of the service, one entry a swap."""

    rss_bytes: list[int] = field(default_factory=list)
    file_descriptors: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def note(self, pid: int, seconds: float) -> None:
        process = psutil.Process(pid)
        self.rss_bytes.append(process.memory_info().rss)
        self.file_descriptors.append(process.num_fds())
        self.threads.append(process.num_threads())
        self.seconds.append(seconds)


def run(options: Options) -> dict[str, Any]:
    """500 swaps at 200 requests/s; short: 10 at 50."""
    return swap_figures(SHORT if options.short else Plan(), options)


def swap_figures(plan: Plan, options: Options) -> dict[str, Any]:
    """The figures of a plan and the checks on them."""
    with tempfile.TemporaryDirectory(prefix="t2diff-swap-") as folder:
        store = Store(Path(folder) / "bundles")
        bundles = [
            generate_bundle(store, num_items=plan.num_items, dim=plan.dim, seed=seed, item_prefix=prefix)
            for seed, prefix in enumerate(PREFIXES)
        ]
        store.publish(bundles[0])
        cpus = sorted(os.sched_getaffinity(0))
        options.say(
            f"{plan.num_swaps} swaps of two bundles of {plan.num_items} items, {plan.rate:g} requests/s"
        )
        serve_options = ["--request-time", "none", "--redis-read-timeout-ms", "1000", "--redis-fsync", "no"]
        serve_options += ["--redis-max-connections", str(_REDIS_CONNECTIONS)]
        with started_service(
            NAME, store.url, options=serve_options, cpus=cpus, folder=Path(folder) / "service"
        ) as served:
            return _Stress(plan, options, store, bundles, served).figures()


class _Stress:
    def __init__(
        self, plan: Plan, options: Options, store: Store, bundles: Sequence[str], served: Served
    ) -> None:
        self.plan, self.options = plan, options
        self.store, self.bundles, self.served = store, bundles, served
        self.resources = Resources()
        self.num_swaps = 0
        self._loaded = threading.Event()  # the warm-up of the present stretch is over

    def figures(self) -> dict[str, Any]:
        plan = self.plan
        seed_users(self.served.url, shared_histories(plan.num_users, plan.num_items), lambda done: None)
        expected = self._expected()
        quiet: list[Samples] = [self._load(expected, plan.quiet_s)]
        swapping: list[Samples] = []
        at_rest = _at_rest(self.served.process.pid)  # after a stretch: connections to Redis are there
        while self.num_swaps < plan.num_swaps:
            with self._swapping():
                swapping.append(self._load(expected, plan.swaps_per_stretch * plan.interval_s))
            quiet.append(self._load(expected, plan.quiet_s))
            p99s = f"p99 {_p99(quiet, plan):.1f} ms without, {_p99(swapping, plan):.1f} with"
            self.options.say(f"{self.num_swaps} swaps; {p99s}")
        return self._report(quiet, swapping, at_rest)

    def _load(self, expected: Expected, duration_s: float) -> Samples:
        """One stretch of steady requests, from a process of its own."""
        plan = self.plan
        settings = ProbeSettings(
            url=self.served.url,
            duration_s=duration_s,
            warmup_s=plan.warmup_s,
            num_users=plan.num_users,
            top_k=plan.top_k,
            arrivals="constant",
            timeout_ms=10_000.0,
            max_connections=MAX_CONNECTIONS,
            seed=self.num_swaps,
            pin_cpu=None,
        )
        load = draw_up(settings, plan.rate, accepts=expected)
        return run_generator(load, self._progress)

    def _progress(self, sent: int, answered: int, of: int) -> None:
        if sent >= self.plan.warmup_s * self.plan.rate:
            self._loaded.set()

    @contextmanager
    def _swapping(self) -> Iterator[None]:
        """Swap from when the warm-up is over, until the stretch has its share of swaps."""
        self._loaded.clear()
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(self._swap_all)
            yield
            self._loaded.set()
            done.result()

    def _swap_all(self) -> None:
        self._loaded.wait()
        began = time.monotonic()
        for number in range(min(self.plan.swaps_per_stretch, self.plan.num_swaps - self.num_swaps)):
            time.sleep(max(0.0, began + number * self.plan.interval_s - time.monotonic()))
            started = time.monotonic()
            self._swap_to(self.bundles[(self.num_swaps + 1) % 2])
            self.num_swaps += 1
            self.resources.note(self.served.process.pid, time.monotonic() - started)

    def _swap_to(self, bundle: str) -> None:
        self.store.publish(bundle)
        request = urllib.request.Request(f"{self.served.admin_url}/admin/reload", method="POST")
        with urllib.request.urlopen(request, timeout=60) as response:
            outcome = json.loads(response.read())
        if outcome != {"outcome": "loaded", "bundle": bundle}:
            raise LoadtestError(f"the swap to {bundle} came to {outcome}")

    def _expected(self) -> Expected:
        """What each bundle answers when it is served alone; the first one is served at the end."""
        scores: dict[tuple[str, str], list[float]] = {}
        for bundle in (*self.bundles[1:], self.bundles[0]):
            self._swap_to(bundle)
            scores |= quiet_scores(
                self.served.url, bundle, num_users=self.plan.num_users, top_k=self.plan.top_k
            )
        return Expected(dict(zip(self.bundles, PREFIXES, strict=True)), scores)

    def _report(
        self, quiet: list[Samples], swapping: list[Samples], before: dict[str, int]
    ) -> dict[str, Any]:
        plan, resources = self.plan, self.resources
        after = _at_rest(self.served.process.pid)
        status = np.concatenate([samples.status for samples in [*quiet, *swapping]])
        wrong = int((status == WRONG_ANSWER).sum())
        failed = int((status != 200).sum()) - wrong
        growth = growth_share(resources.rss_bytes[-_FLAT_OVER:])
        ratio = _p99(swapping, plan) / _p99(quiet, plan)
        answered = {
            name: sum(_answers_of(samples, name) for samples in [*quiet, *swapping]) for name in self.bundles
        }
        return {
            "plan": vars(plan),
            "num_swaps": self.num_swaps,
            "num_requests": len(status),
            "num_not_200": failed,
            "num_mixed": wrong,
            "num_degraded": int(sum(samples.degraded.sum() for samples in [*quiet, *swapping])),
            "answers_by_bundle": dict(zip(PREFIXES, answered.values(), strict=True)),
            "quiet": _latency(quiet, plan),
            "swapping": _latency(swapping, plan),
            "p99_ratio": ratio,
            "p99_ms_by_stretch_quiet": [round(_p99([samples], plan), 1) for samples in quiet],
            "p99_ms_by_stretch_swapping": [round(_p99([samples], plan), 1) for samples in swapping],
            "swap_seconds_median": float(np.median(resources.seconds)),
            "swap_seconds_max": max(resources.seconds),
            "rss_mib": [
                round(rss / 2**20, 1) for rss in resources.rss_bytes[:: max(1, self.num_swaps // 50)]
            ],
            "rss_growth_share_last_400": growth,
            "at_rest_before": before,
            "at_rest_after": after,
            "max_file_descriptors_under_load": max(resources.file_descriptors),
            "max_threads_under_load": max(resources.threads),
            "checks": [
                check("swaps missing", plan.num_swaps - self.num_swaps, 0),
                check("answers that were not 200", failed, 0),
                check("answers that mix bundles", wrong, 0),
                check("p99 with swaps over p99 without", ratio, P99_RATIO_LIMIT),
                check("growth of resident memory over the last 400 swaps", growth, GROWTH_LIMIT),
                check(
                    "file descriptors gained (the pool of Redis connections may fill)",
                    after["file_descriptors"] - before["file_descriptors"],
                    _REDIS_CONNECTIONS,
                ),
                check("threads gained", after["threads"] - before["threads"], 0),
            ],
        }


def growth_share(values: Sequence[float]) -> float:
    """How far a straight line through the values rises from its start, as a share of where it starts."""
    if len(values) < 3:
        return 0.0
    slope, start = np.polyfit(np.arange(len(values)), np.asarray(values, np.float64), 1)
    return float(slope * (len(values) - 1) / start)


def _at_rest(pid: int) -> dict[str, int]:
    """Descriptors and threads once idle connections and finished loads have gone."""
    process = psutil.Process(pid)
    fewest = {"file_descriptors": process.num_fds(), "threads": process.num_threads()}
    for _ in range(20):
        time.sleep(0.1)
        fewest["file_descriptors"] = min(fewest["file_descriptors"], process.num_fds())
        fewest["threads"] = min(fewest["threads"], process.num_threads())
    return fewest | {"rss_bytes": process.memory_info().rss}


def _measured(stretches: Sequence[Samples], plan: Plan) -> np.ndarray:
    """Seconds from the intended send to the whole answer, of all requests after the warm-ups."""
    return np.concatenate(
        [(samples.ended - samples.intended)[samples.intended >= plan.warmup_s] for samples in stretches]
    )


def _p99(stretches: Sequence[Samples], plan: Plan) -> float:
    found = percentiles(_measured(stretches, plan))
    return float("nan") if found is None else found.p99_ms


def _latency(stretches: Sequence[Samples], plan: Plan) -> dict[str, Any]:
    found = percentiles(_measured(stretches, plan))
    assert found is not None
    names = ("count", "p50_ms", "p95_ms", "p99_ms", "p999_ms", "max_ms")
    late = percentiles(np.concatenate([samples.sent - samples.intended for samples in stretches]))
    return {name: getattr(found, name) for name in names} | {"generator_lag_p99_ms": late and late.p99_ms}


def _answers_of(samples: Samples, bundle: str) -> int:
    if bundle not in samples.names:
        return 0
    return int((samples.bundle == samples.names.index(bundle)).sum())
