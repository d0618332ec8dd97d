"""Keeps the service on the store's current bundle and on its new and deleted items.

A newer bundle is read, verified, built into an engine, warmed and asked its canary away from the
serving thread; only then is one reference swapped. A bundle that fails any of this is refused, logged
and counted, and the old one keeps serving. So it is with a delta; an engine is swapped together with its
delta, so that no answer mixes two versions of either.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from index_builder.bundle import BundleError, current_bundle, load_bundle
from service.background import in_daemon_thread
from service.delta_watch import DeltaWatch
from service.engine import Engine, build_engine, set_threads
from service.metrics import Metrics
from service.settings import ServiceSettings

logger = logging.getLogger("t2diff.reload")
RETRY_REFUSED_S = 60.0
"""A refused bundle is tried again after this: the store may have been read at a bad moment."""


class Reloader:
    """Looks at the store when asked to, and every `reload_poll_s`."""

    def __init__(
        self,
        settings: ServiceSettings,
        *,
        device: str,
        metrics: Metrics,
        on_loaded: Callable[[Engine], None],
        on_device: Callable[[Callable[[], Engine]], Awaitable[Engine]],
    ) -> None:
        """on_loaded: gets the engine to serve   on_device: runs a function on the device thread"""
        self._settings = settings
        self._device = device
        self._metrics = metrics
        self._on_loaded = on_loaded
        self._on_device = on_device
        self._lock = asyncio.Lock()
        self._delta_lock = asyncio.Lock()
        self._served: str | None = None
        self._refused: dict[str, float] = {}
        self._engine: Engine | None = None
        self._watch = DeltaWatch(settings, metrics)

    async def check(self, *, retry_refused: bool = True) -> dict[str, Any]:
        """Serve the store's current bundle: {"outcome": "loaded" | "unchanged" | "refused", …}.

        The answer also has "delta", the version in use, when that changed, or "delta_refused", the reason.
        """
        delta = await self._check_delta(retry_refused=retry_refused)
        return await self._check_bundle(retry_refused=retry_refused) | delta

    async def poll(self) -> None:
        """Check every `reload_poll_s` until cancelled; returns at once when that is 0.

        Bundle and delta apart: a large bundle takes minutes to load, and a deleted item must not wait for it.
        """
        if self._settings.reload_poll_s > 0:
            await asyncio.gather(self._repeat(self._check_delta), self._repeat(self._check_bundle))

    async def _repeat(self, check: Callable[..., Awaitable[Any]]) -> None:
        while True:
            await asyncio.sleep(self._settings.reload_poll_s)
            await check(retry_refused=False)

    async def _check_bundle(self, *, retry_refused: bool) -> dict[str, Any]:
        async with self._lock:
            url = None
            try:
                url = await in_daemon_thread(lambda: current_bundle(self._settings.bundles))
                if url is None:
                    raise BundleError(f"no bundle was published in {self._settings.bundles} yet")
                if url == self._served:
                    return {"outcome": "unchanged", "bundle": _name(url)}
                if not retry_refused and time.monotonic() < self._refused.get(url, 0.0):
                    return {"outcome": "refused", "bundle": _name(url), "reason": "it was refused before"}
                engine = await self._watch.up_to_date(await self._load(url))
            except Exception as error:  # whatever is wrong with a bundle, the one before it keeps serving
                return self._refuse(url, error)
            self._served = url
            self._refused.clear()
            self._swap(engine)
            self._metrics.count_reload("loaded")
            logger.info(
                "bundle loaded", extra={"bundle": engine.bundle.bundle_id, "tower_engine": engine.tower.name}
            )
            return {"outcome": "loaded", "bundle": engine.bundle.bundle_id}

    async def _load(self, url: str) -> Engine:
        def load() -> Engine:
            set_threads(self._settings.torch_threads)
            bundle = load_bundle(url, device=self._device)
            engine = build_engine(bundle, device=self._device, settings=self._settings)
            engine.warm_up(self._settings.max_batch)
            return engine

        # A GPU index may be touched by one thread only; a CPU one need not hold up the requests.
        return await (self._on_device(load) if self._device == "cuda" else in_daemon_thread(load))

    async def _check_delta(self, *, retry_refused: bool) -> dict[str, Any]:
        """Use the store's new and deleted items: {}, {"delta": version} or {"delta_refused": reason}."""
        async with self._delta_lock:
            bundle = None if self._engine is None else self._engine.bundle.bundle_id
            refused = await self._watch.read(retry_refused=retry_refused, bundle=bundle)
            served = self._engine
            if refused is not None:
                return {"delta_refused": refused}
            if served is None or served.delta_version == self._watch.delta.version:
                return {}
            try:
                engine = await self._watch.up_to_date(served)
            except Exception as error:
                return {"delta_refused": self._watch.refuse(error, bundle=bundle)}
            if self._engine is served:  # else a new bundle came meanwhile, with this delta
                self._swap(engine)
            _log_delta(engine)
            return {"delta": engine.delta_version}

    def _swap(self, engine: Engine) -> None:
        self._engine = engine
        self._on_loaded(engine)

    def _refuse(self, url: str | None, error: Exception) -> dict[str, Any]:
        name = None if url is None else _name(url)
        if url is not None:
            self._refused[url] = time.monotonic() + RETRY_REFUSED_S
        self._metrics.count_reload("refused")
        expected = isinstance(error, ValueError | OSError)
        logger.error(
            "bundle refused",
            extra={"bundle": name, "reason": str(error)},
            exc_info=None if expected else error,
        )
        return {"outcome": "refused", "bundle": name, "reason": str(error)}


def _log_delta(engine: Engine) -> None:
    logger.info(
        "delta loaded",
        extra={
            "bundle": engine.bundle.bundle_id,
            "delta": engine.delta_version,
            "new_items": engine.num_new_items,
            "deleted_items": engine.num_deleted_items,
        },
    )


def _name(url: str) -> str:
    return url.rstrip("/").rpartition("/")[2]
