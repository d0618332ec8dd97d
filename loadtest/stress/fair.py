"""Two callers of one service: one sends ten times what its key allows, the other must not notice.

The modest caller sends steadily all along. The greedy one sends in windows of a few seconds, in turn nothing,
its quota and ten times that, by one clock. So each kind of window sees the machine in the same states, and
the modest caller's p99s are compared over the same minute. Generators have a processor of their own where
there are two. Then, on a service of its own, a caller without a rate floods the queue; its share of the
places is what keeps it from shutting out the other.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np

from index_builder.generated_bundle import generate_bundle
from index_builder.publish import Store
from loadtest.arrivals import poisson_arrivals
from loadtest.generator import MAX_CONNECTIONS, Load, Samples
from loadtest.probe import run_generator
from loadtest.seeding import seed_users, sequences_from_items
from loadtest.served import Served, started_service
from loadtest.stress.fair_judgement import KINDS, Plan, report, window_kinds
from loadtest.stress.outcome import Options
from service.api_keys import new_key
from service.engine import set_threads
from service.keys_file import change_keys

NAME = "fair"
SHORT = Plan(
    rounds=1,
    rounds_per_block=1,
    window_s=1.0,
    guard_s=0.2,
    warmup_s=0.5,
    rate=20.0,
    quota=10.0,
    flood_rate=0.0,
    num_items=300,
    dim=16,
    num_users=20,
)


def run(options: Options) -> dict[str, Any]:
    """Forty rounds of three windows and a flood; short: one round."""
    return fair_figures(SHORT if options.short else Plan(), options)


def fair_figures(plan: Plan, options: Options) -> dict[str, Any]:
    """The figures of a plan and the checks on them."""
    set_threads(1)  # of this process, which builds the bundle: more waited minutes where others compute
    with tempfile.TemporaryDirectory(prefix="t2diff-fair-") as made:
        folder = Path(made)
        store = Store(folder / "bundles")
        store.publish(generate_bundle(store, num_items=plan.num_items, dim=plan.dim))
        keys = _Keys(folder / "keys", plan)
        options.say(f"{plan.rounds} rounds of {len(KINDS)} windows of {plan.window_s:g} s")
        with _serving(plan, folder, store, keys, []) as served:
            modest, greedy = _both(plan, served, keys, "greedy", _windows(plan))
        flood: tuple[Samples, Samples] | None = None
        if plan.flood_rate:
            options.say(f"a flood of {plan.flood_rate:g} requests/s for {plan.flood_s:g} s")
            slow = ["--max-queue", "32", "--max-batch", "16", "--tower-engine", "eager"]
            with _serving(plan, folder / "flooded", store, keys, slow) as served:
                flood = _both(plan, served, keys, "flood", poisson_arrivals(plan.flood_rate, plan.flood_s, 3))
        return report(plan, modest, greedy, flood)


class _Keys:
    """A file with a key of each caller, and of one that seeds."""

    def __init__(self, file: Path, plan: Plan) -> None:
        made = {
            "modest": new_key("modest", ["recall"]),
            "greedy": new_key("greedy", ["recall"], rate=plan.quota, burst=plan.burst),
            "flood": new_key("flood", ["recall"]),
            "seeding": new_key("seeding", ["events"]),
        }
        change_keys(file, lambda keys: tuple(kept for _, kept in made.values()), create=True)
        self.file = file
        self._made = made

    def headers(self, caller: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._made[caller][0]}"}


@contextmanager
def _serving(plan: Plan, folder: Path, store: Store, keys: _Keys, more: list[str]) -> Iterator[Served]:
    """A service with keys and seeded users, on the processors that the generators leave."""
    serve_options = ["--api-keys", str(keys.file), "--request-time", "none", "--redis-fsync", "no"]
    serve_options += ["--redis-read-timeout-ms", "1000", "--deadline-ms", "10000", *more]
    cpus = _cpus()
    with started_service(
        NAME, store.url, options=serve_options, cpus=cpus[:-1] or cpus, folder=folder / "service"
    ) as served:
        item_ids = [f"item-{number}" for number in range(plan.num_items)]
        sequences = sequences_from_items(item_ids, num_users=plan.num_users, events_per_user=40, seed=0)
        seed_users(served.url, sequences, lambda done: None, headers=keys.headers("seeding"))
        yield served


def _windows(plan: Plan) -> np.ndarray:
    """When the greedy caller sends.   -> (n,) seconds from the start, ascending"""
    rates = {"alone": 0.0, "at quota": plan.quota, "tenfold": plan.excess * plan.quota}
    sent = [
        plan.warmup_s + number * plan.window_s + poisson_arrivals(rates[kind], plan.window_s, 1000 + number)
        for number, kind in enumerate(window_kinds(plan))
        if rates[kind]
    ]
    return np.concatenate(sent)


def _both(plan: Plan, served: Served, keys: _Keys, other: str, when: np.ndarray) -> tuple[Samples, Samples]:
    """Both callers at once, each from a process of its own.   when: the other one sends, seconds"""
    rate, lasts_s = plan.rate, plan.warmup_s + len(window_kinds(plan)) * plan.window_s
    if other == "flood":
        rate, lasts_s = plan.beside_flood, plan.flood_s
    steadily = poisson_arrivals(rate, lasts_s, seed=1)
    together = multiprocessing.get_context("spawn").Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        loads = [
            pool.submit(_load, plan, served, keys.headers(caller), offsets_s, together)
            for caller, offsets_s in (("modest", steadily), (other, when))
        ]
        modest, beside = (load.result() for load in loads)
        return modest, beside


def _load(
    plan: Plan, served: Served, headers: dict[str, str], offsets_s: np.ndarray, together: Barrier
) -> Samples:
    users = np.random.default_rng(len(offsets_s)).integers(1, plan.num_users + 1, size=len(offsets_s))
    load = Load(
        url=served.url,
        offsets_s=offsets_s,
        users=users,
        top_k=plan.top_k,
        timeout_s=20.0,
        max_connections=MAX_CONNECTIONS,
        pin_cpu=_cpus()[-1],
        headers=headers,
        together=together,
    )
    return run_generator(load, lambda sent, answered, of: None)


def _cpus() -> list[int]:
    return sorted(os.sched_getaffinity(0))
