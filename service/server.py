"""One process: two HTTP listeners on one event loop, the device thread, the store, and their order.

Start: sockets bound, Redis, first bundle loaded and warm, then requests are taken. Stop (SIGTERM,
SIGINT): ready turns 503 while requests are still answered, then no more are accepted, those in flight
are answered, and last the device thread, Redis and the sockets go. Every step is bounded in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial

import uvicorn

from service.app import create_admin_app, create_app
from service.arms import Arms
from service.batch_memory import BatchMemory
from service.batcher import Batcher
from service.callers import Callers
from service.embedded_redis import EmbeddedRedis
from service.engine import EngineAnswer, EngineRequest, choose_device, set_threads
from service.errors import QueueFullError, StoreUnavailableError
from service.exposure import check_exposure, is_loopback
from service.http_protocol import GuardedProtocol, guarded_protocol
from service.key_watch import KeyWatch
from service.metrics import Metrics
from service.middleware import Application
from service.recall import RecallService
from service.recall_protocol import recall_protocol
from service.redis_url import shown
from service.reloader import Reloader
from service.sequence_store import SequenceStore
from service.settings import ServiceSettings, SettingsError, environment_variable_of, flag_of
from service.start_tracing import started_tracing
from service.store_options import options_of
from service.tls import TlsFiles, tls_files

logger = logging.getLogger("t2diff.server")
SWITCH_INTERVAL_S = 0.0005
"""How long the device thread may keep Python to itself when the event loop has work (default 5 ms)."""
_GC_THRESHOLDS = (50_000, 20, 20)
"""An answer allocates hundreds of objects that its end frees; the defaults looked at them several times a
request, for a tenth of the event loop's time."""
KEEP_ALIVE_S = 75
"""Longer than clients and proxies keep idle connections: they close first and never meet a closed one."""


class StartError(RuntimeError):
    """The service cannot start; the message is one line for people."""


async def serve(
    settings: ServiceSettings,
    *,
    announce: Callable[[str], None],
    reread: Callable[[], ServiceSettings] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT.

    announce: gets what a person should read once requests are welcome
    reread: the settings as they are now, asked for on SIGHUP; their experiment is taken over
    Raises StartError, EmbeddedRedisError or ValueError when the service cannot start.
    """
    stop = _stop_signal()
    tls = tls_files(settings)
    with (
        _bound(settings.host, settings.port, "port") as public,
        _bound(settings.admin_host, settings.admin_port, "admin_port") as admin,
        started_tracing(settings, metrics := Metrics()) as begin_trace,
    ):
        check_exposure(settings, {"host": public, "admin_host": admin})
        keys = None if settings.api_keys is None else KeyWatch(settings.api_keys)
        private = is_loopback(admin)
        admin_tls = None if private else tls
        async with _parts(settings, metrics) as (service, reloader, redis_shown):
            callers = None if keys is None else _callers(settings, keys, service)
            admin_app = create_admin_app(service, reloader.check, callers, open_metrics=private)
            patient = guarded_protocol(settings.header_timeout_s)
            servers = [
                Listener(
                    create_app(service, callers, begin_trace),
                    timeout_s=settings.shutdown_timeout_s,
                    http=public_protocol(service, patient),
                    tls=tls,
                ),
                Listener(admin_app, timeout_s=1, http=patient, tls=admin_tls),
            ]
            running = [
                asyncio.create_task(server.serve(sockets=[listening]))
                for server, listening in zip(servers, (public, admin), strict=True)
            ]
            await _started(servers, running)
            polling = [asyncio.create_task(reloader.poll())]
            if keys is not None and callers is not None:
                polling.append(asyncio.create_task(keys.poll(callers, service.metrics.callers)))
            service.metrics.ready.set(1)
            _on_hangup(service, reloader, reread)
            urls = _url(public, tls), _url(admin, admin_tls)
            announce(_greeting(settings, service, *urls, redis_shown, keys))
            await asyncio.wait([stop, *running], return_when=asyncio.FIRST_COMPLETED)
            for task in polling:
                task.cancel()
            await _drain(settings, service, servers, running)


@contextlib.asynccontextmanager
async def _parts(
    settings: ServiceSettings, metrics: Metrics
) -> AsyncIterator[tuple[RecallService, Reloader, str]]:
    """Redis, store, device thread and the first engine; ended in the reverse order."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    device = choose_device(settings.device)
    async with _redis(settings) as (redis_url, redis_shown):
        store = SequenceStore(redis_url, options_of(settings), on_state=metrics.set_breaker)
        batcher: Batcher[EngineRequest, EngineAnswer] = Batcher(
            max_batch=settings.max_batch,
            max_queue=settings.max_queue,
            on_thread_start=partial(set_threads, settings.torch_threads),
            on_batch=lambda answers: metrics.observe_batch(answers[0]),
        )
        metrics.queue_depth.set_function(lambda: batcher.depth)
        metrics.device_busy.set_function(lambda: batcher.busy_seconds)
        service = RecallService(settings, store=store, batcher=batcher, metrics=metrics)
        metrics.in_flight.set_function(lambda: service.in_flight.count)
        reloader = Reloader(
            settings,
            device=device,
            metrics=metrics,
            on_loaded=service.swap,
            on_device=batcher.call,
            on_experiment=service.run_experiment,
            in_use=service.engines,
            on_refreshed=service.refresh,
            degradation=service.degradation,
            memory=BatchMemory(on_limit=metrics.set_batch_limit),
        )
        try:
            first = await reloader.run(settings.experiment)
            if first["outcome"] != "loaded":
                name = "bundles" if settings.experiment is None else "experiment"
                raise StartError(f"{_named(name)}: {first['reason']}")
            gc.collect()
            gc.freeze()  # what lives as long as the bundle need not be looked at again and again
            gc.set_threshold(*_GC_THRESHOLDS)
            if not await _reachable(store):
                redis_shown += ", not reachable now: the fallback answers until it is"
            yield service, reloader, redis_shown
        finally:
            await service.comparisons.close()
            await batcher.close(timeout_s=1.5)  # requests are answered: only a wedged one is left
            await store.close()


def _callers(settings: ServiceSettings, keys: KeyWatch, service: RecallService) -> Callers:
    """Everybody with a key; they share what fits into the queue and on the device."""
    num_places = settings.max_queue + settings.max_batch
    callers = Callers(keys.keys, num_places=num_places, places_now=lambda: service.in_flight.places_now)
    service.metrics.callers.callers = callers
    return callers


@contextlib.asynccontextmanager
async def _redis(settings: ServiceSettings) -> AsyncIterator[tuple[str, str]]:
    """The URL of the Redis to use, and how to show it without its password."""
    if settings.redis_url is not None:
        url = settings.redis_url.get_secret_value()
        yield url, shown(url)
        return
    async with EmbeddedRedis(settings.state_dir, fsync=settings.redis_fsync) as embedded:
        yield embedded.url, f"embedded ({embedded.binary}), data in {embedded.folder}"


async def _reachable(store: SequenceStore) -> bool:
    for _ in range(3):  # the first call also connects
        try:
            await store.ping()
            return True
        except StoreUnavailableError as error:
            logger.warning("Redis does not answer", extra={"reason": error.reason})
    return False


def public_protocol(service: RecallService, base: type[GuardedProtocol]) -> type[GuardedProtocol]:
    """What speaks HTTP with callers. Refusals that are to be logged are the application's."""
    on_refused = partial(service.metrics.count_response, "recall", QueueFullError.status)
    return recall_protocol(
        service.in_flight, None if service.settings.log_requests == "all" else on_refused, base
    )


class Listener(uvicorn.Server):
    """A uvicorn server that leaves the signals to us: there are two of them."""

    def __init__(
        self,
        app: Application,
        *,
        timeout_s: int,
        http: type[asyncio.Protocol] | None = None,
        tls: TlsFiles | None = None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="none",
                http=http or guarded_protocol(10.0),
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # nobody here asks who the caller is
                backlog=2048,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=timeout_s,
                **({} if tls is None else tls.uvicorn_options()),
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _started(servers: list[Listener], running: list[asyncio.Task[None]]) -> None:
    while not all(server.started for server in servers):
        await asyncio.wait(running, timeout=0.01, return_when=asyncio.FIRST_COMPLETED)
        for task in running:
            if task.done():
                task.result()
                raise StartError("a listener ended before it began; see the log")


async def _drain(
    settings: ServiceSettings,
    service: RecallService,
    servers: list[Listener],
    running: list[asyncio.Task[None]],
) -> None:
    logger.info("stopping: requests in flight are answered first")
    service.draining = True
    service.metrics.ready.set(0)
    await asyncio.sleep(settings.shutdown_delay_s)
    for server, task in zip(servers, running, strict=True):  # admin last: it shows how the drain goes
        server.should_exit = True
        await task


def _on_hangup(
    service: RecallService, reloader: Reloader, reread: Callable[[], ServiceSettings] | None
) -> None:
    """SIGHUP: run the experiment that the settings file holds now; a wrong one changes nothing."""
    if reread is None:
        return
    running: set[asyncio.Task[object]] = set()

    async def take_over() -> None:
        try:
            changed = reread()
        except SettingsError as error:
            service.metrics.count_reload("refused")
            logger.error("settings refused", extra={"reason": str(error)})
            return
        await reloader.run(changed.experiment)

    def begin() -> None:
        task: asyncio.Task[object] = asyncio.get_running_loop().create_task(take_over())
        running.add(task)
        task.add_done_callback(running.discard)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, begin)


def _stop_signal() -> asyncio.Future[None]:
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[None] = loop.create_future()

    def request_stop() -> None:
        if not stop.done():
            stop.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, request_stop)
    return stop


@contextlib.contextmanager
def _bound(host: str, port: int, setting: str) -> Iterator[socket.socket]:
    """A socket bound but not yet listening: a taken port shows before anything else is started."""
    where = _named(setting)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise StartError(f"{where}: cannot listen on {host}:{port}: {error.strerror or error}") from None
    with bound:
        yield bound


def _named(setting: str) -> str:
    return f"{setting} ({flag_of(setting)}, {environment_variable_of(setting)})"


def _url(bound: socket.socket, tls: TlsFiles | None) -> str:
    host, port = bound.getsockname()[:2]
    scheme = "http" if tls is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _greeting(
    settings: ServiceSettings,
    service: RecallService,
    public: str,
    admin: str,
    redis_shown: str,
    keys: KeyWatch | None,
) -> str:
    engine = service.engine
    bundle = engine.bundle
    lines = {
        "recall": f"{public}  (documentation: {public}/docs)",
        "admin": f"{admin}  (/metrics, POST /admin/reload)",
        "bundle": f"{bundle.bundle_id}: {bundle.model_name}, {len(bundle.item_ids)} items, "
        f"{bundle.index.kind} index",
        "device": f"{engine.device}, {settings.torch_threads} thread(s)",
        "tower": f"engine {engine.tower.name}",
        **({} if service.arms is None else {"arms": _shown_arms(service.arms)}),
        **({} if keys is None else {"keys": "{keys} of {callers} caller(s)".format(**keys.summary())}),
        "redis": redis_shown,
    }
    return "\n".join(["t2diff-serve is ready", *(f"  {name:<7} {text}" for name, text in lines.items())])


def _shown_arms(arms: Arms) -> str:
    shown = arms.document()
    each = [f"{arm['name']} {arm['share']:g} %{' shadow' * arm['shadow']}" for arm in shown["arms"]]
    return f"experiment {shown['name']}: {', '.join(each)}"
