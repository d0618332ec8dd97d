"""How the sequence store behaves."""

from __future__ import annotations

from typing import Any, NamedTuple

from service.redis_connections import TlsFiles


class StoreOptions(NamedTuple):
    """How the store behaves; see `settings.py` for what each means."""

    namespace: str = "t2diff"
    read_timeout_ms: float = 25.0
    write_timeout_ms: float = 1000.0
    max_connections: int = 8
    breaker_threshold: int = 5
    breaker_cooldown_ms: float = 500.0
    max_length: int = 200
    ttl_s: int = 90 * 86_400
    cache_ms: float = 0.0
    tls: TlsFiles = TlsFiles()


def options_of(settings: Any) -> StoreOptions:
    """The store's part of the settings."""
    return StoreOptions(
        namespace=settings.redis_namespace,
        read_timeout_ms=settings.redis_read_timeout_ms,
        write_timeout_ms=settings.redis_write_timeout_ms,
        max_connections=settings.redis_max_connections,
        breaker_threshold=settings.breaker_threshold,
        breaker_cooldown_ms=settings.breaker_cooldown_ms,
        max_length=settings.sequence_max_length,
        ttl_s=max(1, round(settings.sequence_ttl_days * 86_400)),
        cache_ms=settings.sequence_cache_ms,
        tls=TlsFiles(
            *map(_path, (settings.redis_ca_file, settings.redis_cert_file, settings.redis_key_file))
        ),
    )


def _path(path: Any) -> str | None:
    return None if path is None else str(path)
