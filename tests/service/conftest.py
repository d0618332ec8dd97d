"""Real parts for the service's tests: redis-servers, a tiny published bundle, a service in this process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from index_builder.bundle import current_bundle, load_bundle
from index_builder.publish import Store
from loadtest.stress.redis_process import RedisProcess
from service.app import create_app
from service.batcher import Batcher
from service.callers import Callers
from service.embedded_redis import EmbeddedRedis
from service.engine import Engine, set_threads
from service.metrics import Metrics
from service.recall import RecallService
from service.sequence_store import SequenceStore, StoreOptions
from service.settings import ServiceSettings
from service.store_options import options_of
from tests.redis_cluster import ClusterProcesses
from tests.untrained import build_untrained


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Async tests run on the loop that the service runs on."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
def redis_on_a_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Somebody's own Redis: the URL of a redis-server over TCP."""
    with RedisProcess(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture(scope="session")
def redis_cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a cluster of three."""
    with ClusterProcesses(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster.url


@pytest.fixture(params=["embedded", "own", "cluster"])
async def redis_url(
    request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: object
) -> AsyncIterator[str]:
    """The ways of having a Redis."""
    if request.param != "embedded":
        own = {"own": "redis_on_a_port", "cluster": "redis_cluster_url"}[request.param]
        yield request.getfixturevalue(own)
        return
    async with EmbeddedRedis(tmp_path) as embedded:
        yield embedded.url


@pytest.fixture
async def store(redis_url: str, request: pytest.FixtureRequest) -> AsyncIterator[SequenceStore]:
    """A store under a namespace of its own, patient enough for a loaded machine."""
    options = StoreOptions(
        namespace=f"test-{abs(hash(request.node.nodeid)):x}",
        read_timeout_ms=2000,
        write_timeout_ms=5000,
        max_length=5,
    )
    store = SequenceStore(redis_url, options)
    yield store
    await store.close()


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one published bundle; tests that change it take a copy."""
    store = Store(tmp_path_factory.mktemp("bundles"))
    store.publish(build_untrained(store, seed=0))
    return Path(store.url)


@pytest.fixture(scope="session")
def build() -> Callable[[Store, int], str]:
    """`build(store, seed)`: another bundle."""
    return build_untrained


@pytest.fixture(scope="session")
def engine(bundles: Path) -> Engine:
    """The published bundle, loaded."""
    url = current_bundle(bundles)
    assert url is not None
    return Engine(load_bundle(url), device="cpu")


@dataclass
class Running:
    """A service in this process, and a client of its HTTP app."""

    service: RecallService
    client: httpx.AsyncClient
    app: Any


Start = Callable[..., Awaitable[Running]]


@pytest.fixture
async def start(
    bundles: Path, engine: Engine, redis_on_a_port: str, request: pytest.FixtureRequest, anyio_backend: object
) -> AsyncIterator[Start]:
    """`await start(setting=value, …)`: a service on the published bundle and a Redis namespace of its own.

    callers: those with a key; without them anybody may ask
    """
    async with contextlib.AsyncExitStack() as stack:

        async def start_service(callers: Callers | None = None, **overrides: Any) -> Running:
            values: dict[str, Any] = {
                "bundles": str(bundles),
                "redis_url": redis_on_a_port,
                "redis_namespace": f"test-{abs(hash(request.node.nodeid)):x}",
                "redis_read_timeout_ms": 2000,
                "redis_write_timeout_ms": 5000,
                "deadline_ms": 20_000,
                "request_time": "none",
            }
            settings = ServiceSettings(**(values | overrides))
            metrics = Metrics()
            assert settings.redis_url is not None
            store = SequenceStore(
                settings.redis_url.get_secret_value(), options_of(settings), metrics.set_breaker
            )
            stack.push_async_callback(store.close)
            batcher: Batcher[Any, Any] = Batcher(
                max_batch=settings.max_batch,
                max_queue=settings.max_queue,
                on_thread_start=partial(set_threads, 1),
                on_batch=lambda answers: metrics.observe_batch(answers[0]),
            )
            stack.push_async_callback(batcher.close)
            service = RecallService(settings, store=store, batcher=batcher, metrics=metrics)
            service.swap(engine)
            app = create_app(service, callers)
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)  # type: ignore[arg-type]
            client = httpx.AsyncClient(transport=transport, base_url="http://service")
            await stack.enter_async_context(client)
            return Running(service, client, app)

        yield start_service
