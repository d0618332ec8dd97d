"""Two callers of one service: one sends ten times what its key allows, the other must not notice.

The modest caller sends steadily in every stretch: alone, beside the greedy one at its quota, and beside the
greedy one at ten times that. The three take turns, each round in another order, and p99s are compared within
a round, so that whatever else the machine does weighs on all alike. The generators run on the processors of
the service: what the greedy one costs there counts against the service. Then, on a service of its own, a
caller without a rate floods the queue; its share of the places is what keeps it from shutting out the other.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from index_builder.generated_bundle import generate_bundle
from index_builder.publish import Store
from loadtest.generator import MAX_CONNECTIONS, Samples
from loadtest.histogram import percentiles
from loadtest.probe import ProbeSettings, draw_up, run_generator
from loadtest.seeding import seed_users, sequences_from_items
from loadtest.served import Served, started_service
from loadtest.stress.outcome import Options, check
from service.api_keys import new_key
from service.engine import set_threads
from service.keys_file import change_keys

NAME = "fair"
P99_RATIO_LIMIT = 1.2
REJECT_P99_LIMIT_MS = 10.0
_ACCEPTED_LIMIT = 1.02
"""Of what the quota and one burst allow: the service's clock and the generator's are not the same."""
KINDS = ("alone", "at quota", "tenfold")


@dataclass(frozen=True)
class Plan:
    """rate: the modest caller's requests/s   quota: the greedy caller's, of which it sends `excess` times

    warmup_s: of each stretch, not counted   overhang_s: the greedy load lasts this much longer, for processes
    do not start at the same moment   flood_rate: requests/s of the caller without a rate; 0: none
    """

    rounds: int = 10
    kinds: tuple[str, ...] = KINDS
    duration_s: float = 12.0
    warmup_s: float = 3.0
    overhang_s: float = 2.0
    rate: float = 100.0
    quota: float = 20.0
    excess: float = 10.0
    flood_rate: float = 800.0
    num_items: int = 3_706
    dim: int = 64
    num_users: int = 200
    top_k: int = 20


SHORT = Plan(
    rounds=1,
    kinds=("tenfold",),
    duration_s=1.5,
    warmup_s=0.5,
    overhang_s=1.0,
    rate=20.0,
    quota=10.0,
    flood_rate=0.0,
    num_items=300,
    dim=16,
    num_users=20,
)


class Stretch(NamedTuple):
    """What came of both callers' requests; the greedy one's are None while it is away."""

    modest: Samples
    greedy: Samples | None


def run(options: Options) -> dict[str, Any]:
    """Ten rounds of three stretches and a flood; short: one stretch at ten times the quota."""
    return fair_figures(SHORT if options.short else Plan(), options)


def fair_figures(plan: Plan, options: Options) -> dict[str, Any]:
    """The figures of a plan and the checks on them."""
    set_threads(1)  # of this process, which builds the bundle: more waited minutes where others compute
    with tempfile.TemporaryDirectory(prefix="t2diff-fair-") as made:
        folder = Path(made)
        store = Store(folder / "bundles")
        store.publish(generate_bundle(store, num_items=plan.num_items, dim=plan.dim))
        keys = _make_keys(folder / "keys", plan)
        stretches: dict[str, list[Stretch]] = {kind: [] for kind in plan.kinds}
        with _serving(plan, folder, store, keys, []) as served:
            for number in range(plan.rounds):
                turn = number % len(plan.kinds)
                for kind in plan.kinds[turn:] + plan.kinds[:turn]:
                    stretches[kind].append(_stretch(plan, served, keys, kind, seed=number))
                options.say(_line(number + 1, plan, stretches))
        flood = None
        if plan.flood_rate:
            slow = ["--max-queue", "32", "--max-batch", "16", "--tower-engine", "eager"]
            with _serving(plan, folder / "flooded", store, keys, slow) as served:
                flood = _stretch(plan, served, keys, "flood", seed=0)
        return report(plan, stretches, flood)


def _make_keys(file: Path, plan: Plan) -> dict[str, str]:
    """A key of each caller and one that seeds, in a file.   -> caller -> key, and "file" -> its path"""
    made = {
        "modest": new_key("modest", ["recall"]),
        "greedy": new_key("greedy", ["recall"], rate=plan.quota, burst=max(1, round(plan.quota / 10))),
        "flood": new_key("flood", ["recall"]),
        "seeding": new_key("seeding", ["events"]),
    }
    change_keys(file, lambda keys: tuple(kept for _, kept in made.values()), create=True)
    return {name: key for name, (key, _) in made.items()} | {"file": str(file)}


@contextmanager
def _serving(
    plan: Plan, folder: Path, store: Store, keys: dict[str, str], more: list[str]
) -> Iterator[Served]:
    """A service with keys and seeded users."""
    serve_options = ["--api-keys", keys["file"], "--request-time", "none", "--redis-read-timeout-ms", "1000"]
    serve_options += ["--redis-fsync", "no", "--deadline-ms", "10000", *more]
    cpus = sorted(os.sched_getaffinity(0))
    with started_service(
        NAME, store.url, options=serve_options, cpus=cpus, folder=folder / "service"
    ) as served:
        item_ids = [f"item-{number}" for number in range(plan.num_items)]
        sequences = sequences_from_items(item_ids, num_users=plan.num_users, events_per_user=40, seed=0)
        seed_users(served.url, sequences, lambda done: None, headers=_bearing(keys["seeding"]))
        yield served


def _stretch(plan: Plan, served: Served, keys: dict[str, str], kind: str, *, seed: int) -> Stretch:
    """One stretch of steady requests of both callers, each from a process of its own."""
    rates = {
        "alone": 0.0,
        "at quota": plan.quota,
        "tenfold": plan.excess * plan.quota,
        "flood": plan.flood_rate,
    }
    other = "flood" if kind == "flood" else "greedy"
    with ThreadPoolExecutor(2) as pool:
        modest = pool.submit(_load, plan, served, keys["modest"], plan.rate, plan.duration_s, seed)
        duration_s = plan.duration_s + plan.overhang_s
        beside = rates[kind] and pool.submit(
            _load, plan, served, keys[other], rates[kind], duration_s, seed + 1000
        )
        return Stretch(modest.result(), beside.result() if beside else None)


def _load(plan: Plan, served: Served, key: str, rate: float, duration_s: float, seed: int) -> Samples:
    settings = ProbeSettings(
        url=served.url,
        duration_s=duration_s,
        warmup_s=plan.warmup_s,
        num_users=plan.num_users,
        top_k=plan.top_k,
        arrivals="poisson",
        timeout_ms=20_000.0,
        max_connections=MAX_CONNECTIONS,
        seed=seed,
        pin_cpu=None,
    )
    load = replace(draw_up(settings, rate), headers=_bearing(key))
    return run_generator(load, lambda sent, answered, of: None)


def _bearing(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def report(plan: Plan, stretches: dict[str, list[Stretch]], flood: Stretch | None) -> dict[str, Any]:
    """What the stretches came to, and the checks."""
    modest = {kind: [stretch.modest for stretch in of_kind] for kind, of_kind in stretches.items()}
    everything = [samples for of_kind in modest.values() for samples in of_kind]
    tenfold = [stretch.greedy for stretch in stretches["tenfold"] if stretch.greedy is not None]
    ratios = p99_ratios(modest, plan)
    checks = [
        check("modest caller: answers that were not 200", _num_not(everything, 200), 0),
        check("modest caller: degraded answers", int(sum(one.degraded.sum() for one in everything)), 0),
        *_greedy_checks(plan, tenfold),
    ]
    if "tenfold" in ratios:
        ratio = float(np.median(ratios["tenfold"]))
        rejects = percentiles(np.concatenate([(one.ended - one.sent)[one.status == 429] for one in tenfold]))
        checks += [
            check("modest caller: p99 beside ten times the quota over p99 alone", ratio, P99_RATIO_LIMIT),
            check("refusals: p99 in ms", None if rejects is None else rejects.p99_ms, REJECT_P99_LIMIT_MS),
        ]
    if flood is not None and flood.greedy is not None:
        accepted = float((flood.greedy.status == 200).mean())
        checks += [
            check("flood: the modest caller's answers that were not 200", _num_not([flood.modest], 200), 0),
            check("flood: share of the flood that was answered", accepted, 0.9),
        ]
    return {
        "plan": vars(plan),
        "modest": {kind: _latency(of_kind, plan) for kind, of_kind in modest.items()},
        "modest_in_the_flood": flood and _latency([flood.modest], plan),
        "greedy_by_status": {
            kind: _by_status([s.greedy for s in of_kind if s.greedy is not None])
            for kind, of_kind in stretches.items()
        },
        "flood_by_status": flood and flood.greedy and _by_status([flood.greedy]),
        "p99_ratios_by_round": {kind: [round(one, 3) for one in all_] for kind, all_ in ratios.items()},
        "p99_ratio_of_all": {kind: _p99(modest[kind], plan) / _p99(modest["alone"], plan) for kind in ratios},
        "checks": checks,
    }


def _greedy_checks(plan: Plan, tenfold: Sequence[Samples]) -> list[dict[str, Any]]:
    """It gets its quota, no more, and is told so otherwise."""
    accepted = sum(int((samples.status == 200).sum()) for samples in tenfold)
    burst = max(1, round(plan.quota / 10))
    allowed = sum(plan.quota * float(samples.ended.max() - samples.sent.min()) + burst for samples in tenfold)
    return [
        check("greedy caller: accepted, as a share of what it may", accepted / allowed, _ACCEPTED_LIMIT),
        check("greedy caller: part of what it may that it did not get", 1 - accepted / allowed, 0.2),
        check("greedy caller: answers other than 200 and 429", _num_not(tenfold, 200, 429), 0),
    ]


def p99_ratios(modest: dict[str, list[Samples]], plan: Plan) -> dict[str, list[float]]:
    """kind -> the modest caller's p99 over its p99 alone, of each round."""
    if "alone" not in modest:
        return {}
    alone = [_p99([samples], plan) for samples in modest["alone"]]
    return {
        kind: [_p99([samples], plan) / base for samples, base in zip(of_kind, alone, strict=True)]
        for kind, of_kind in modest.items()
        if kind != "alone"
    }


def _measured(stretches: Sequence[Samples], plan: Plan) -> np.ndarray:
    """Seconds from the intended send to the whole answer, of all requests after the warm-ups."""
    return np.concatenate([(one.ended - one.intended)[one.intended >= plan.warmup_s] for one in stretches])


def _p99(stretches: Sequence[Samples], plan: Plan) -> float:
    found = percentiles(_measured(stretches, plan))
    return float("nan") if found is None else found.p99_ms


def _latency(stretches: Sequence[Samples], plan: Plan) -> dict[str, Any]:
    found = percentiles(_measured(stretches, plan))
    late = percentiles(np.concatenate([samples.sent - samples.intended for samples in stretches]))
    assert found is not None
    names = ("count", "p50_ms", "p95_ms", "p99_ms", "p999_ms", "max_ms")
    return {name: getattr(found, name) for name in names} | {"generator_lag_p99_ms": late and late.p99_ms}


def _num_not(stretches: Sequence[Samples], *statuses: int) -> int:
    return int(sum((~np.isin(samples.status, statuses)).sum() for samples in stretches))


def _by_status(stretches: Sequence[Samples]) -> dict[str, int]:
    found, counts = np.unique(
        [status for one in stretches for status in one.status.tolist()], return_counts=True
    )
    return {str(status): int(count) for status, count in zip(found.tolist(), counts.tolist(), strict=True)}


def _line(number: int, plan: Plan, stretches: dict[str, list[Stretch]]) -> str:
    p99s = [
        f"{kind} {_p99([stretch.modest for stretch in of_kind], plan):.1f} ms"
        for kind, of_kind in stretches.items()
    ]
    return f"round {number} of {plan.rounds}; the modest caller's p99 so far: {', '.join(p99s)}"
