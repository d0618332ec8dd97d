"""Keeps the service on the store's current bundle, its new and deleted items, and arms on their bundles.

A newer bundle is read, verified, built into an engine, warmed and asked its canary away from the
serving thread; only then is one reference swapped. A bundle that fails any of this is refused, logged
and counted, and the old one keeps serving. What several arms name is loaded once; what none names any more
is let go. So it is with a delta of new and deleted items; an engine is swapped together with its delta, so
that no answer mixes two versions of either.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Any

from index_builder.bundle import BundleError, current_bundle, load_bundle
from index_builder.publish import Store
from index_builder.signature import read_keys
from service.background import in_daemon_thread
from service.batch_memory import BatchMemory
from service.degradation import SoftDegradation
from service.delta_watch import DeltaWatch
from service.engine import Engine, build_engine, set_threads
from service.experiments import CURRENT, Experiment
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
        on_experiment: Callable[[Experiment | None, Mapping[str, Engine]], None],
        in_use: Callable[[], Collection[Engine]],
        on_refreshed: Callable[[Engine, Engine], None],
        degradation: SoftDegradation | None = None,
        memory: BatchMemory | None = None,
    ) -> None:
        """on_loaded: gets the engine of the current bundle   on_device: runs a function on the device thread

        on_experiment: gets the experiment to run and the engine of each bundle that its arms name
        in_use: the engines that answer now; none of their bundles is loaded twice
        on_refreshed: gets an engine that answers now and the same with a newer delta, to put in its place
        degradation, memory: what every engine is given
        """
        self._settings = settings
        self._device = device
        self._metrics = metrics
        self._on_loaded = on_loaded
        self._on_device = on_device
        self._on_experiment = on_experiment
        self._in_use = in_use
        self._on_refreshed = on_refreshed
        self._degradation = degradation
        self._memory = memory
        self._experiment: Experiment | None = None
        self._lock = asyncio.Lock()
        self._delta_lock = asyncio.Lock()
        self._served: str | None = None
        self._refused: dict[str, float] = {}
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
        """Without an arm that follows the store's pointer there is nothing to do."""
        async with self._lock:
            url = None
            if self._experiment is not None and CURRENT not in self._experiment.bundles:
                return {"outcome": "unchanged", "bundle": None}
            try:
                url = await in_daemon_thread(partial(_url_of, self._settings.bundles, CURRENT))
                if url == self._served:
                    return {"outcome": "unchanged", "bundle": _name(url)}
                if not retry_refused and time.monotonic() < self._refused.get(url, 0.0):
                    return {"outcome": "refused", "bundle": _name(url), "reason": "it was refused before"}
                engine = await self._engine(url)
            except Exception as error:  # whatever is wrong with a bundle, the one before it keeps serving
                return self._refuse(url, error)
            self._served = url
            self._refused.clear()
            self._on_loaded(engine)
            self._metrics.count_reload("loaded")
            _log_loaded(engine)
            return {"outcome": "loaded", "bundle": engine.bundle.bundle_id}

    async def run(self, experiment: Experiment | None) -> dict[str, Any]:
        """Serve the arms of `experiment`, or without one the current bundle alone; all of it or nothing.

        The outcome is that of `check`.
        """
        async with self._delta_lock:
            await self._watch.read(retry_refused=True, bundle=self._shown())
        async with self._lock:
            engines: dict[str, Engine] = {}
            url = current = None
            named = {CURRENT: None} if experiment is None else experiment.bundles
            for bundle, arm in named.items():
                try:
                    url = await in_daemon_thread(partial(_url_of, self._settings.bundles, bundle))
                    engines[bundle] = _of_bundle(engines.values(), url) or await self._engine(url)
                except Exception as error:
                    where = None if arm is None else f"arm {arm!r}, bundle {bundle}"
                    return self._refuse(url, error, where=where)
                current = url if bundle == CURRENT else current
            self._experiment, self._served = experiment, current
            self._on_experiment(experiment, engines)
            self._metrics.count_reload("loaded")
            for engine in {id(engine): engine for engine in engines.values()}.values():
                _log_loaded(engine, experiment=experiment and experiment.name)
            return {"outcome": "loaded", "bundle": next(iter(engines.values())).bundle.bundle_id}

    async def _check_delta(self, *, retry_refused: bool) -> dict[str, Any]:
        """Use the store's new and deleted items: {}, {"delta": version} or {"delta_refused": reason}."""
        async with self._delta_lock:
            refused = await self._watch.read(retry_refused=retry_refused, bundle=self._shown())
            if refused is not None:
                return {"delta_refused": refused}
            version = self._watch.delta.version
            behind = [engine for engine in self._in_use() if engine.delta_version != version]
            for served in behind:
                try:
                    engine = await self._watch.up_to_date(served)
                except Exception as error:
                    return {"delta_refused": self._watch.refuse(error, bundle=served.bundle.bundle_id)}
                self._on_refreshed(served, engine)
                _log_delta(engine)
            return {"delta": version} if behind else {}

    def _shown(self) -> str | None:
        """The bundle that a log line about all of them names."""
        return next((engine.bundle.bundle_id for engine in self._in_use()), None)

    async def _engine(self, url: str) -> Engine:
        """The engine of a bundle, with the delta that is in use."""
        return await self._watch.up_to_date(_of_bundle(self._in_use(), url) or await self._load(url))

    async def _load(self, url: str) -> Engine:
        def load() -> Engine:
            set_threads(self._settings.torch_threads)
            keys = read_keys(self._settings.signature_key)
            bundle = load_bundle(url, device=self._device, keys=keys, milvus=self._settings.milvus)
            engine = build_engine(
                bundle,
                device=self._device,
                settings=self._settings,
                degradation=self._degradation,
                memory=self._memory,
            )
            engine.warm_up(self._settings.max_batch)
            return engine

        # A GPU index may be touched by one thread only; a CPU one need not hold up the requests.
        return await (self._on_device(load) if self._device == "cuda" else in_daemon_thread(load))

    def _refuse(self, url: str | None, error: Exception, *, where: str | None = None) -> dict[str, Any]:
        name = None if url is None else _name(url)
        reason = str(error) if where is None else f"{where}: {error}"
        if url is not None:
            self._refused[url] = time.monotonic() + RETRY_REFUSED_S
        self._metrics.count_reload("refused")
        expected = isinstance(error, ValueError | OSError)
        logger.error(
            "bundle refused",
            extra={"bundle": name, "reason": reason},
            exc_info=None if expected else error,
        )
        return {"outcome": "refused", "bundle": name, "reason": reason}


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


def _url_of(store: str, bundle: str) -> str:
    """Where a bundle lies, as an arm names it. Raises BundleError when nothing was published yet."""
    if bundle != CURRENT:
        return Store(store).bundle_url(bundle)
    url = current_bundle(store)
    if url is None:
        raise BundleError(f"no bundle was published in {store} yet")
    return url


def _log_loaded(engine: Engine, **extra: Any) -> None:
    told = {"bundle": engine.bundle.bundle_id, "tower_engine": engine.tower.name}
    logger.info("bundle loaded", extra=told | extra)


def _of_bundle(engines: Collection[Engine], url: str) -> Engine | None:
    return next((engine for engine in engines if engine.bundle.bundle_id == _name(url)), None)


def _name(url: str) -> str:
    return url.rstrip("/").rpartition("/")[2]
