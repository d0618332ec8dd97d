"""Pools of connections to Redis: straight to a server, or to the primary that the sentinels name.

The client's defaults are not ours: it retries (a stopped server held a call for 59 s), waits 20 s for a
pool, and introduces itself with commands that an ACL would have to allow.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff

from service.redis_url import is_sentinel, is_tls, parse_sentinel_url

CONNECT_TIMEOUT_S = 1.0
SENTINEL_TIMEOUT_S = 0.2
"""For one sentinel to connect and to answer; then the next one is asked."""


class TlsFiles(NamedTuple):
    """PEM files.   ca: whom to trust, the system's authorities without it   cert, key: who we are"""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None


def connection_pool(
    url: str, tls: TlsFiles, *, max_connections: int, wait_s: float
) -> BlockingConnectionPool:
    """A pool that waits `wait_s` at most for a free connection. Nothing connects yet."""
    ours = _options() | {"socket_timeout": None}  # the outer timeout covers the whole call
    if is_tls(url):
        ours |= _tls_options(tls)
    size = {"max_connections": max_connections, "timeout": wait_s}
    if not is_sentinel(url):
        return BlockingConnectionPool(**{**parse_url(url), **ours, **size})
    where = parse_sentinel_url(url)
    encryption = {"ssl": True, **_tls_options(tls)} if is_tls(url) else {}
    sentinel = Sentinel(
        where.sentinels,
        sentinel_kwargs={
            **_options(),
            **encryption,
            "socket_timeout": SENTINEL_TIMEOUT_S,
            "socket_connect_timeout": SENTINEL_TIMEOUT_S,
            "username": where.sentinel_username,
            "password": where.sentinel_password,
        },
    )
    entrance = {"username": where.username, "password": where.password, "db": where.db}
    return _PrimaryPool(where.service, sentinel, **{**ours, **encryption, **entrance, **size})


class _PrimaryPool(SentinelConnectionPool, BlockingConnectionPool):
    """Asks the sentinels for the primary before each new connection, and waits as the other pool does."""

    async def aclose(self) -> None:
        await super().aclose()
        await self.sentinel_manager.aclose()


def _options() -> dict[str, Any]:
    return {
        "retry": Retry(NoBackoff(), 0),
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "protocol": 2,
        "driver_info": None,  # no CLIENT SETINFO
    }


def _tls_options(tls: TlsFiles) -> dict[str, Any]:
    given = {"ssl_ca_certs": tls.ca, "ssl_certfile": tls.cert, "ssl_keyfile": tls.key}
    return {name: path for name, path in given.items() if path is not None}
