"""Who runs the store's reads and writes, by what `redis_url` says: pools of one server, or of a cluster."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from service.cluster_slots import ClusterSlots
from service.redis_cluster import RedisCluster
from service.redis_guard import RedisGuard
from service.redis_url import is_cluster
from service.script_runner import OneServer, ScriptRunner
from service.store_options import StoreOptions


def redis_runners(
    url: str, options: StoreOptions, num_readers: int, on_state: Callable[[str, str], None] | None
) -> tuple[ScriptRunner, ScriptRunner]:
    """Of reads and of writes. With a cluster the numbers of connections are those to each node."""
    guard = partial(
        RedisGuard,
        tls=options.tls,
        breaker_threshold=options.breaker_threshold,
        breaker_cooldown_ms=options.breaker_cooldown_ms,
    )
    readers = partial(guard, max_connections=num_readers)
    writers = partial(guard, max_connections=max(1, options.max_connections - num_readers))
    read_ms, write_ms = options.read_timeout_ms, options.write_timeout_ms
    if not is_cluster(url):
        return (
            OneServer(readers("read", url, timeout_ms=read_ms, on_state=on_state)),
            OneServer(writers("write", url, timeout_ms=write_ms, on_state=on_state)),
        )
    cluster = partial(RedisCluster, url=url, slots=ClusterSlots(url, guard), on_state=on_state)
    return (
        cluster("read", guard=readers, timeout_ms=read_ms),
        cluster("write", guard=writers, timeout_ms=write_ms),
    )
