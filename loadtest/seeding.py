"""Give the load test's users something to recall from: sequences sent through the service's own POST /events.

Real sequences come from an event log (each user's last events, under a load test user's id); without a
log, item ids are drawn at random from the published bundle, which exercises the same code but is not
how people behave. The service keeps an event once, so that seeding twice from a log with times changes
nothing; random sequences are appended, and the service caps their length.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import numpy as np
import orjson

from loadtest.errors import LoadtestError
from loadtest.generator import user_id

if TYPE_CHECKING:
    from index_builder.bundle import Bundle  # when run, imported where it is used: torch takes a second

MAX_EVENTS_PER_USER = 1000
_EVENTS_PER_REQUEST = 1000  # the service's limit
_MEAN_GAP_S = 3600.0  # between the events of a random sequence
_REQUESTS_IN_FLIGHT = 4
_TIMEOUT = aiohttp.ClientTimeout(total=30.0)

Behaviours = list[tuple[str, int | None]]  # (item_id, unix seconds or None = unknown), oldest first


def sequences_from_log(
    path: Path, *, num_users: int, events_per_user: int, seed: int
) -> Iterator[Behaviours]:
    """The last events of `num_users` users of a log in any format that training reads, in random order.

    A log with fewer users is gone through again, so that every load test user gets a real sequence.
    """
    from model.data.interactions import DataError, Rules
    from model.data.reader import ReadOptions, read_interactions

    try:
        log = read_interactions([path], options=ReadOptions(), rules=Rules(min_interactions=1))
    except DataError as error:
        raise LoadtestError(f"log {path}: {error}") from None
    order = np.random.default_rng(seed).permutation(log.num_users)
    for number in range(num_users):
        items, times, _ = log.sequence(int(order[number % log.num_users]))
        last = zip(items[-events_per_user:].tolist(), times[-events_per_user:].tolist(), strict=True)
        yield [(log.item_ids[item - 1], when if log.has_times else None) for item, when in last]


def sequences_from_items(
    item_ids: Sequence[str], *, num_users: int, events_per_user: int, seed: int, now: int | None = None
) -> Iterator[Behaviours]:
    """Items drawn evenly at random, at random times that end at `now` (unix seconds)."""
    random = np.random.default_rng(seed)
    end = int(time.time()) if now is None else now
    for _ in range(num_users):
        items = random.integers(len(item_ids), size=events_per_user)
        before_end = np.cumsum(random.exponential(_MEAN_GAP_S, size=events_per_user))[::-1]
        times = np.maximum(end - before_end.astype(np.int64), 0)
        yield [(item_ids[item], when) for item, when in zip(items.tolist(), times.tolist(), strict=True)]


def bundle_item_ids(store: str) -> Sequence[str]:
    """The item ids of the bundle that a store publishes. store: a folder or fsspec URL"""
    return _published(store).item_ids


def bundle_index_bytes(store: str) -> int:
    """How large what is searched is: the index, and the item embeddings where it reads those too."""
    from index_builder.bundle_files import INDEX

    bundle = _published(store)
    size: int = bundle.manifest["files"][INDEX]["size_bytes"]
    reads_embeddings = not bundle.index.holds_items or bundle.index.rescored
    return size + (bundle.item_embeddings.nbytes if reads_embeddings else 0)


def _published(store: str) -> Bundle:
    from index_builder.bundle import current_bundle, load_bundle

    try:
        current = current_bundle(store)
        if current is not None:
            return load_bundle(current)
    except ValueError as error:  # BundleError, StoreError: already a line for people
        raise LoadtestError(f"bundles {store}: {error}") from None
    raise LoadtestError(f"bundles {store}: nothing is published there; t2diff-index publishes")


def seed_users(
    url: str,
    sequences: Iterator[Behaviours],
    progress: Callable[[int], None],
    headers: Mapping[str, str] | None = None,
) -> int:
    """Send user 1's sequence, user 2's, ... to POST /events; the number of events sent.

    progress: called with the number of users done   headers: of every request, such as a key
    Raises LoadtestError at the first refusal.
    """
    return asyncio.run(_seed_users(url, sequences, progress, headers or {}))


async def _seed_users(
    url: str, sequences: Iterator[Behaviours], progress: Callable[[int], None], headers: Mapping[str, str]
) -> int:
    requests = _requests(sequences)
    num_events = 0

    async def worker(session: aiohttp.ClientSession) -> None:
        nonlocal num_events
        for num_users, events in requests:  # workers share one iterator: each request is taken once
            await _send(session, url, events)
            num_events += len(events)
            progress(num_users)

    async with aiohttp.ClientSession(
        timeout=_TIMEOUT, headers={"Content-Type": "application/json", **headers}
    ) as session:
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(_REQUESTS_IN_FLIGHT):
                    workers.create_task(worker(session))
        except* LoadtestError as group:
            raise group.exceptions[0] from None
    return num_events


def _requests(sequences: Iterator[Behaviours]) -> Iterator[tuple[int, list[dict[str, object]]]]:
    """Whole users packed into requests, so that a user's events arrive in order: (users, events)."""
    num_users, events = 0, list[dict[str, object]]()
    for number, behaviours in enumerate(sequences, start=1):
        if events and len(events) + len(behaviours) > _EVENTS_PER_REQUEST:
            yield num_users, events
            num_users, events = 0, []
        num_users += 1
        for item_id, timestamp in behaviours:
            event: dict[str, object] = {"user_id": user_id(number), "item_id": item_id}
            events.append(event if timestamp is None else event | {"timestamp": timestamp})
    if events:
        yield num_users, events


async def _send(session: aiohttp.ClientSession, url: str, events: list[dict[str, object]]) -> None:
    try:
        async with session.post(
            f"{url}/events", data=orjson.dumps(events), allow_redirects=False
        ) as response:
            body = await response.read()
            if response.status >= 300:
                answer = f"{response.status} {body[:300].decode(errors='replace')}"
                raise LoadtestError(f"POST {url}/events was refused: {answer}")
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise LoadtestError(f"POST {url}/events failed: {error or type(error).__name__}") from None
