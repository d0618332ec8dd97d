"""Redis under load: stopped, killed, slow and losing bytes, one after the other, at half of what is held.

Redis is a process of its own behind a proxy that delays and swallows. Every request must be answered with 200
within its deadline; the service must be back on users' sequences within a second of the end of the fault, and
must have asked for few connections meanwhile. A stretch without any fault counts false fallbacks.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from index_builder.generated_bundle import generate_bundle
from index_builder.publish import Store
from loadtest.errors import LoadtestError
from loadtest.generator import MAX_CONNECTIONS, Samples
from loadtest.histogram import percentiles
from loadtest.knee import find_knee
from loadtest.probe import Probe, ProbeSettings, draw_up, run_generator, run_probe
from loadtest.seeding import seed_users
from loadtest.served import Served, started_service
from loadtest.stress.expected_answers import PREFIXES, shared_histories
from loadtest.stress.faulty_proxy import NONE, Fault, FaultyProxy
from loadtest.stress.outcome import Options, check
from loadtest.stress.redis_process import RedisProcess
from service.engine import set_threads

NAME = "redis"
DEADLINE_S = 1.0
"""The service's default."""
RECOVERY_LIMIT_S = 1.0
RELAPSE_LIMIT = 0.01
"""Ten times what is allowed without a fault: there are few requests after one."""
CONNECTIONS_LIMIT = 50
FALSE_FALLBACK_LIMIT = 0.001
_SLOW = Fault(delay_s=0.1)  # four times what a read may take
_LOSSY = Fault(drop_share=1.0)
_P99_LIMIT_MS = 100.0
_STORE = "(store_"  # in the route of a fallback that Redis is the reason of


@dataclass(frozen=True)
class Plan:
    """rate: requests/s, None for half the knee   warmup_s, after_s: around a fault   quiet_s: without one"""

    faults: tuple[str, ...] = ("stopped", "killed", "slow", "losing all bytes")
    rate: float | None = None
    warmup_s: float = 3.0
    fault_s: float = 10.0
    after_s: float = 5.0
    quiet_s: float = 60.0
    num_items: int = 3_706
    dim: int = 64
    num_users: int = 200
    top_k: int = 20


SHORT = Plan(
    faults=("stopped", "losing all bytes"),
    rate=40,
    warmup_s=0.5,
    fault_s=1.0,
    after_s=1.5,
    quiet_s=1.0,
    num_items=300,
    dim=16,
    num_users=20,
)


def run(options: Options) -> dict[str, Any]:
    """Four faults of 10 s at half the knee; short: two of one second at 40 requests/s."""
    return fault_figures(SHORT if options.short else Plan(), options)


def fault_figures(plan: Plan, options: Options) -> dict[str, Any]:
    """The figures of a plan and the checks on them."""
    with tempfile.TemporaryDirectory(prefix="t2diff-redis-") as folder:
        set_threads(1)  # with two on a busy machine the bundle takes ten times as long
        store = Store(Path(folder) / "bundles")
        store.publish(generate_bundle(store, num_items=plan.num_items, dim=plan.dim, item_prefix=PREFIXES[0]))
        durable = ("--appendonly", "yes", "--appendfsync", "everysec")
        with (
            RedisProcess(Path(folder) / "redis", *durable) as redis,
            FaultyProxy(redis.port) as proxy,
            started_service(
                NAME,
                store.url,
                options=["--request-time", "none", "--redis-url", f"redis://127.0.0.1:{proxy.port}/0"],
                cpus=sorted(os.sched_getaffinity(0)),
                folder=Path(folder) / "service",
            ) as served,
        ):
            return _Stress(plan, options, redis, proxy, served).figures()


class _Stress:
    def __init__(
        self, plan: Plan, options: Options, redis: RedisProcess, proxy: FaultyProxy, served: Served
    ) -> None:
        self.plan, self.options = plan, options
        self.redis, self.proxy, self.served = redis, proxy, served
        self._loaded = threading.Event()  # the first request of the present stretch has gone

    def figures(self) -> dict[str, Any]:
        plan = self.plan
        seed_users(self.served.url, shared_histories(plan.num_users, plan.num_items), lambda done: None)
        knee = self._knee() if plan.rate is None else None
        rate = knee / 2 if knee is not None else plan.rate
        assert rate is not None
        quiet = self._probe(rate, plan.quiet_s)
        false_share = _store_fallback_share(quiet)
        self.options.say(f"{rate:.0f} requests/s, {false_share:.4%} false fallbacks without a fault")
        overload = None if knee is None else self._probe(2 * knee, 10.0)
        stretches = {name: self._stretch(name, rate) for name in plan.faults}
        return {
            "plan": vars(plan),
            "knee": knee,
            "rate": rate,
            "num_quiet": quiet.num_answers,
            "quiet_answered_by": quiet.routes,
            "false_fallback_share": false_share,
            "quiet_p99_ms": quiet.latency and quiet.latency.p99_ms,
            "at_twice_the_knee": None if overload is None else _overload_figures(overload),
            "faults": stretches,
            "checks": [
                check("false fallbacks without a fault", false_share, FALSE_FALLBACK_LIMIT),
                *(line for name, of in stretches.items() for line in fault_checks(name, of)),
            ],
        }

    def _knee(self) -> float:
        found = find_knee(
            partial(self._probe, duration_s=5.0), start_rate=200, max_rate=3200, p99_limit_ms=_P99_LIMIT_MS
        )
        if found.highest_held is None:
            raise LoadtestError("the service held no rate at all: free the machine")
        self.options.say(f"knee {found.highest_held:.0f} requests/s")
        return found.highest_held

    def _probe(self, rate: float, duration_s: float) -> Probe:
        return run_probe(self._settings(duration_s), rate)

    def _settings(self, duration_s: float) -> ProbeSettings:
        return ProbeSettings(
            url=self.served.url,
            duration_s=duration_s,
            warmup_s=min(1.0, self.plan.warmup_s),
            num_users=self.plan.num_users,
            top_k=self.plan.top_k,
            arrivals="constant",
            timeout_ms=10_000.0,
            max_connections=MAX_CONNECTIONS,
            seed=0,
            pin_cpu=None,
        )

    def _stretch(self, name: str, rate: float) -> dict[str, Any]:
        """Load before, during and after one fault, and what came of it."""
        plan = self.plan
        begin, end = self._fault(name)
        self._loaded.clear()
        with ThreadPoolExecutor(1) as pool:
            faulty = pool.submit(self._inflict, begin, end)
            load = draw_up(self._settings(plan.warmup_s + plan.fault_s + plan.after_s), rate)
            samples = run_generator(load, self._progress)
            self._loaded.set()
            began, ended, connections = faulty.result()
        figures = stretch_figures(samples, began - samples.started, ended - samples.started, DEADLINE_S)
        figures["connections"] = connections
        self.options.say(f"{name}: {figures}")
        return figures

    def _progress(self, sent: int, answered: int, of: int) -> None:
        if sent:
            self._loaded.set()

    def _inflict(self, begin: Callable[[], None], end: Callable[[], None]) -> tuple[float, float, int]:
        """When the fault began and ended, and how many connections were asked for until a second later."""
        self._loaded.wait()
        time.sleep(self.plan.warmup_s)
        before = self.proxy.num_connections
        began = time.monotonic()
        begin()
        time.sleep(max(0.0, began + self.plan.fault_s - time.monotonic()))
        end()
        ended = time.monotonic()
        time.sleep(1.0)
        return began, ended, self.proxy.num_connections - before

    def _fault(self, name: str) -> tuple[Callable[[], None], Callable[[], None]]:
        """What begins it and what ends it; a killed Redis is there again when its file is read."""
        faults: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
            "stopped": (self.redis.stop, self.redis.go_on),
            "killed": (self.redis.kill, self.redis.start),
            "slow": (partial(self._go_wrong, _SLOW), partial(self._go_wrong, NONE)),
            "losing all bytes": (partial(self._go_wrong, _LOSSY), partial(self._go_wrong, NONE)),
        }
        return faults[name]

    def _go_wrong(self, fault: Fault) -> None:
        self.proxy.fault = fault


def stretch_figures(samples: Samples, began: float, ended: float, deadline_s: float) -> dict[str, Any]:
    """What one fault did.   began, ended: seconds from the start of the schedule

    recovery_s: from the end of the fault until a request was sent that Redis did not leave without a sequence
    relapse_share: of the requests from then on that it did; fallbacks of another reason are only counted
    """
    seconds = samples.ended - samples.intended
    during = (samples.intended >= began) & (samples.intended < ended)
    after = samples.sent >= ended
    by_store = np.array([number for number, name in enumerate(samples.names) if _STORE in name], np.int16)
    without = np.isin(samples.route, by_store)
    back_at = samples.sent[after & ~without].min(initial=np.inf)
    later = after & (samples.sent >= back_at)
    slow = percentiles(seconds[during])
    return {
        "num_requests": len(samples.status),
        "num_not_200": int((samples.status != 200).sum()),
        "num_5xx": int((samples.status >= 500).sum()),
        "num_past_deadline": int((~(seconds <= deadline_s)).sum()),
        "num_during": int(during.sum()),
        "num_fallbacks_during": int((during & samples.degraded).sum()),
        "answered_by_during": _answered_by(samples, during),
        "answered_by_after": _answered_by(samples, after),
        "p99_ms_during": slow and slow.p99_ms,
        "max_ms_during": slow and slow.max_ms,
        "recovery_s": float(back_at - ended),
        "relapse_share": float(without[later].mean()) if later.any() else None,
    }


def fault_checks(name: str, of: dict[str, Any]) -> list[dict[str, Any]]:
    """What each fault is held to; one that no request noticed did not happen."""
    return [
        check(f"{name}: answers that were not 200", of["num_not_200"], 0),
        check(f"{name}: 5xx", of["num_5xx"], 0),
        check(f"{name}: answers past the deadline", of["num_past_deadline"], 0),
        check(f"{name}: seconds until it was back", of["recovery_s"], RECOVERY_LIMIT_S),
        check(f"{name}: share of fallbacks from then on", of["relapse_share"], RELAPSE_LIMIT),
        check(f"{name}: connections asked for", of["connections"], CONNECTIONS_LIMIT),
        check(f"{name}: fault without an effect", int(of["num_fallbacks_during"] == 0), 0),
    ]


def _answered_by(samples: Samples, which: np.ndarray) -> dict[str, int]:
    return dict(Counter(samples.names[route] for route in samples.route[which] if route >= 0))


def _store_fallback_share(probe: Probe) -> float:
    by_store = sum(count for route, count in probe.routes.items() if _STORE in route)
    return by_store / probe.num_answers if probe.num_answers else 1.0


def _overload_figures(probe: Probe) -> dict[str, Any]:
    """For the record: whether a busy loop is taken for a slow Redis."""
    return {
        "rate": probe.asked_rate,
        "num_answers": probe.num_answers,
        "answers_by_route": probe.routes,
        "errors": probe.errors,
        "store_fallback_share": _store_fallback_share(probe),
    }
