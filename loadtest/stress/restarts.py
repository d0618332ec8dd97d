"""Rolling restarts behind a proxy, under load: two services take turns, and no request may fail.

Each restart is a SIGTERM, the wait for the end, and a start on the same port; the other service is ready all
the while. They share one Redis. What makes it work is that readiness turns 503 before the listener closes
(`--shutdown-delay-s`), for longer than the proxy takes to notice.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from index_builder.generated_bundle import generate_bundle
from index_builder.publish import Store
from loadtest.generator import MAX_CONNECTIONS, Samples
from loadtest.histogram import percentiles
from loadtest.probe import ProbeSettings, draw_up, run_generator
from loadtest.seeding import seed_users
from loadtest.served import Served, started_service
from loadtest.stress.balancer import CHECK_MS, started_balancer
from loadtest.stress.expected_answers import PREFIXES, shared_histories
from loadtest.stress.outcome import Options, check
from loadtest.stress.redis_process import RedisProcess, free_port
from service.engine import set_threads

NAME = "restarts"
_SHUTDOWN_DELAY_S = 1.0
_NOTICED_S = 10 * CHECK_MS / 1e3
"""After a start, until the proxy sends requests there."""
_EXIT_LIMIT_S = 15.0


@dataclass(frozen=True)
class Plan:
    """rate: requests/s   stretch_s: how long one generator process runs before the next takes over"""

    num_restarts: int = 50
    rate: float = 100.0
    stretch_s: float = 30.0
    num_items: int = 3_706
    dim: int = 64
    num_users: int = 200
    top_k: int = 20


SHORT = Plan(num_restarts=1, rate=20, stretch_s=3.0, num_items=300, dim=16, num_users=20)


def run(options: Options) -> dict[str, Any]:
    """50 restarts at 100 requests/s; short: one at 20."""
    return restart_figures(SHORT if options.short else Plan(), options)


def restart_figures(plan: Plan, options: Options) -> dict[str, Any]:
    """The figures of a plan and the checks on them."""
    with tempfile.TemporaryDirectory(prefix="t2diff-restarts-") as name, ExitStack() as stack:
        folder = Path(name)
        set_threads(1)  # with two on a busy machine the bundle takes ten times as long
        store = Store(folder / "bundles")
        store.publish(generate_bundle(store, num_items=plan.num_items, dim=plan.dim, item_prefix=PREFIXES[0]))
        redis = stack.enter_context(RedisProcess(folder / "redis"))
        replicas = [Replica(folder / name, store.url, redis.url) for name in ("left", "right")]
        for replica in replicas:
            stack.enter_context(replica.running())
        seed_users(replicas[0].url, shared_histories(plan.num_users, plan.num_items), lambda done: None)
        proxy = stack.enter_context(started_balancer([replica.port for replica in replicas], folder))
        options.say(f"{plan.num_restarts} restarts behind {proxy.kind}, {plan.rate:g} requests/s")
        time.sleep(_NOTICED_S)
        with ThreadPoolExecutor(1) as pool:
            restarting = pool.submit(_restart_in_turn, replicas, plan.num_restarts, options)
            stretches = list(_load(plan, proxy.url, restarting))
            seconds = restarting.result()
    return {"plan": vars(plan), "proxy": proxy.kind, **summarise(stretches, plan.num_restarts, seconds)}


class Replica:
    """A service that is ended and started again on its port."""

    def __init__(self, folder: Path, bundles: str, redis_url: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder, self._bundles = folder, bundles
        self._options = ["--request-time", "none", "--redis-url", redis_url]
        self._options += ["--shutdown-delay-s", str(_SHUTDOWN_DELAY_S)]
        self._now: ExitStack | None = None
        self._served: Served | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Started until the end of the block, restarts in between."""
        self._start()
        try:
            yield
        finally:
            self._end()

    def restart(self) -> tuple[float, int]:
        """Seconds from SIGTERM to the end, and the exit status."""
        assert self._served is not None
        began = time.monotonic()
        self._end()
        ended_after = time.monotonic() - began
        status = self._served.process.returncode
        self._start()
        return ended_after, status

    def _start(self) -> None:
        self._now = ExitStack()
        cpus = sorted(os.sched_getaffinity(0))
        self._served = self._now.enter_context(
            started_service(
                NAME, self._bundles, options=self._options, cpus=cpus, folder=self._folder, port=self.port
            )
        )

    def _end(self) -> None:
        if self._now is not None:
            self._now.close()


def _restart_in_turn(replicas: list[Replica], num: int, options: Options) -> list[tuple[float, int]]:
    ended = []
    for number in range(num):
        ended.append(replicas[number % len(replicas)].restart())
        time.sleep(_NOTICED_S)
        if number % 10 == 9:
            options.say(f"{number + 1} restarts")
    return ended


def _load(plan: Plan, url: str, restarting: Future[Any]) -> Iterator[Samples]:
    """Steady requests for as long as there are restarts."""
    number = 0
    while not restarting.done():
        settings = ProbeSettings(
            url=url,
            duration_s=plan.stretch_s,
            warmup_s=0.0,
            num_users=plan.num_users,
            top_k=plan.top_k,
            arrivals="constant",
            timeout_ms=30_000.0,
            max_connections=MAX_CONNECTIONS,
            seed=number,
            pin_cpu=None,
        )
        yield run_generator(draw_up(settings, plan.rate), lambda sent, answered, of: None)
        number += 1


def summarise(stretches: list[Samples], num_restarts: int, ended: list[tuple[float, int]]) -> dict[str, Any]:
    """ended: seconds that each service took to end, and its exit status"""
    status = np.concatenate([samples.status for samples in stretches])
    seconds = np.concatenate([samples.ended - samples.intended for samples in stretches])
    failed = int((status != 200).sum())
    found = percentiles(seconds)
    slowest = max((seconds for seconds, _ in ended), default=None)
    return {
        "num_restarts": len(ended),
        "num_requests": len(status),
        "num_failed": failed,
        "failures": dict(Counter(str(each) for each in status[status != 200].tolist())),
        "num_fallbacks": int(sum(samples.degraded.sum() for samples in stretches)),
        "p50_ms": found and found.p50_ms,
        "p99_ms": found and found.p99_ms,
        "exit_seconds_max": slowest,
        "checks": [
            check("restarts missing", num_restarts - len(ended), 0),
            check("failed requests", failed if len(status) else None, 0),
            check("services that did not end by themselves", sum(code != 0 for _, code in ended), 0),
            check("seconds until a service ended", slowest, _EXIT_LIMIT_S),
        ],
    }
