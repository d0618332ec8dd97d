"""What the stress tests of a crowd stand on: a service on one processor, the crowd on another."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from index_builder.generated_bundle import generate_bundle
from index_builder.publish import Store
from loadtest.served import Served, started_service


@contextmanager
def service_on(
    name: str, folder: Path, *, num_items: int, dim: int, options: Sequence[str]
) -> Iterator[tuple[Served, Store]]:
    """A service on a generated bundle, and the store that the bundle lies in."""
    store = Store(folder / "bundles")
    store.publish(generate_bundle(store, num_items=num_items, dim=dim))
    every = ["--redis-fsync", "no", "--log-requests", "none", *options]
    with started_service(name, store.url, options=every, cpus=_cpus()[:1], folder=folder / name) as served:
        yield served, store


def generator_cpu() -> int | None:
    """Not the one that `service_on` gives the service, where there is another."""
    cpus = _cpus()
    return cpus[1] if len(cpus) > 1 else None


def _cpus() -> list[int]:
    return sorted(os.sched_getaffinity(0))
