"""Keeps the service on the store's current bundle, and the arms of an experiment on theirs.

A newer bundle is read, verified, built into an engine, warmed and asked its canary away from the
serving thread; only then is one reference swapped. A bundle that fails any of this is refused, logged
and counted, and the old one keeps serving. What several arms name is loaded once; what none names any more
is let go.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Any, TypeVar

from index_builder.bundle import BundleError, current_bundle, load_bundle
from index_builder.publish import Store
from service.engine import Engine, build_engine, set_threads
from service.experiments import CURRENT, Experiment
from service.metrics import Metrics
from service.settings import ServiceSettings

logger = logging.getLogger("t2diff.reload")
Result = TypeVar("Result")
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
        on_experiment: Callable[[Experiment | None, Mapping[str, Engine]], None] | None = None,
        in_use: Callable[[], Collection[Engine]] = tuple,
    ) -> None:
        """on_loaded: gets the engine of the current bundle   on_device: runs a function on the device thread

        on_experiment: gets the experiment to run and the engine of each bundle that its arms name
        in_use: the engines that answer now; none of their bundles is loaded twice
        """
        self._settings = settings
        self._device = device
        self._metrics = metrics
        self._on_loaded = on_loaded
        self._on_device = on_device
        self._on_experiment = on_experiment
        self._in_use = in_use
        self._experiment: Experiment | None = None
        self._lock = asyncio.Lock()
        self._served: str | None = None
        self._refused: dict[str, float] = {}

    async def check(self, *, retry_refused: bool = True) -> dict[str, Any]:
        """Serve the store's current bundle: {"outcome": "loaded" | "unchanged" | "refused", …}.

        Without an arm that follows the store's pointer there is nothing to do.
        """
        async with self._lock:
            url = None
            if self._experiment is not None and CURRENT not in self._experiment.bundles:
                return {"outcome": "unchanged", "bundle": None}
            try:
                url = await _in_daemon_thread(partial(_url_of, self._settings.bundles, CURRENT))
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
        assert self._on_experiment is not None
        async with self._lock:
            engines: dict[str, Engine] = {}
            url = current = None
            named = {CURRENT: None} if experiment is None else experiment.bundles
            for bundle, arm in named.items():
                try:
                    url = await _in_daemon_thread(partial(_url_of, self._settings.bundles, bundle))
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

    async def poll(self) -> None:
        """Check every `reload_poll_s` until cancelled; returns at once when that is 0."""
        while self._settings.reload_poll_s > 0:
            await asyncio.sleep(self._settings.reload_poll_s)
            await self.check(retry_refused=False)

    async def _engine(self, url: str) -> Engine:
        return _of_bundle(self._in_use(), url) or await self._load(url)

    async def _load(self, url: str) -> Engine:
        def load() -> Engine:
            set_threads(self._settings.torch_threads)
            bundle = load_bundle(url, device=self._device)
            engine = build_engine(bundle, device=self._device, settings=self._settings)
            engine.warm_up(self._settings.max_batch)
            return engine

        # A GPU index may be touched by one thread only; a CPU one need not hold up the requests.
        return await (self._on_device(load) if self._device == "cuda" else _in_daemon_thread(load))

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


async def _in_daemon_thread(function: Callable[[], Result]) -> Result:
    """Like `asyncio.to_thread`, but a long load does not hold up the end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def deliver(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def run() -> None:
        result: Any = None
        failure: BaseException | None = None
        try:
            result = function()
        except BaseException as error:
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(deliver, result, failure)

    threading.Thread(target=run, name="load", daemon=True).start()
    return await future


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
