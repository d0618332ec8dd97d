"""`t2diff-serve` as a person runs it: a process of its own, real sockets, Redis and bundles."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from index_builder.publish import Store
from loadtest.stress.forked import ForkedProcess
from loadtest.stress.redis_process import RedisProcess
from tests import forked
from tests.redis_cluster import ClusterProcesses
from tests.replicas import Replicas
from tests.untrained import TINY, build_untrained

SLOW = {"embedding_dim": 64, "max_length": 50, "num_steps": 50}


@pytest.fixture(scope="session")
def build() -> Callable[..., str]:
    """`build(store, seed, config)`: another bundle, not published."""
    return build_untrained


@pytest.fixture(scope="session")
def tiny_bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a published bundle that answers in a few milliseconds."""
    store = Store(tmp_path_factory.mktemp("tiny"))
    store.publish(build_untrained(store, 0, TINY))
    return Path(store.url)


@pytest.fixture(scope="session")
def slow_bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a published bundle whose 50 steps take tens of milliseconds a request."""
    store = Store(tmp_path_factory.mktemp("slow"))
    store.publish(build_untrained(store, 0, SLOW))
    return Path(store.url)


class Served:
    """A running `t2diff-serve`."""

    def __init__(self, process: ForkedProcess, greeting: str, log: Path) -> None:
        self.process = process
        self.greeting = greeting
        self.log_path = log
        self.url = re.search(r"recall +(https?://\S+)", greeting)[1]  # type: ignore[index]
        self.admin_url = re.search(r"admin +(https?://\S+)", greeting)[1]  # type: ignore[index]
        self.bundle = re.search(r"bundle +(\S+):", greeting)[1]  # type: ignore[index]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, **options)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels."""
        total = 0.0
        for line in httpx.get(f"{self.admin_url}/metrics").text.splitlines():
            if re.match(rf"{name}[ {{]", line) and all(f'{k}="{v}"' in line for k, v in labels.items()):
                total += float(line.rpartition(" ")[2])
        return total

    def stop(self, timeout_s: float = 20.0) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


Serve = Callable[..., Served]


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcesses]:
    """A cluster of three."""
    with ClusterProcesses(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def serve(request: pytest.FixtureRequest, serve_one: Serve, tmp_path_factory: Any) -> Iterator[Any]:
    """`serve(bundles, setting=value, …)`: start a service and wait until it says that it is ready.

    With `--target replicas` three behind HAProxy, which share a Redis Cluster unless the test names a Redis.
    """
    if request.config.getoption("--target") == "process":
        yield serve_one
        return
    if shutil.which("haproxy") is None:
        pytest.skip("there is no haproxy on PATH")
    started: list[Replicas] = []

    def start(bundles: Path, **settings: Any) -> Replicas:
        if "redis_url" not in settings:
            settings["redis_url"] = request.getfixturevalue("redis_cluster").url
        started.append(Replicas(serve_one, bundles, tmp_path_factory.mktemp("haproxy"), settings))
        return started[-1]

    yield start
    for replicas in started:
        replicas.close()


@pytest.fixture(scope="module")
def serve_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """`serve_one(bundles, setting=value, …)`: one process."""
    started: list[ForkedProcess] = []
    folders: list[Path] = []

    def start(bundles: Path, **settings: Any) -> Served:
        folder = tmp_path_factory.mktemp("serve")
        folders.append(folder)
        log = folder / "log"
        values = {
            "port": 0,
            "admin_port": 0,
            "state_dir": folder,
            "redis_read_timeout_ms": 1000,
            "redis_write_timeout_ms": 5000,
            "deadline_ms": 20_000,
            "request_time": "none",
            "reload_poll_s": 0,
        } | settings
        flags = [
            word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))
        ]
        with log.open("w") as errors:
            command = [sys.executable, "-m", "service.cli", "--bundles", bundles, *flags]
            process = forked.start(command, stdout=subprocess.PIPE, stderr=errors)
        started.append(process)
        greeting = []
        assert process.stdout is not None
        for line in process.stdout:
            greeting.append(line)
            if line.startswith("  redis"):
                return Served(process, "".join(greeting), log)
        raise AssertionError(f"did not start: {log.read_text()}")

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
            process.terminate()
    for process in started:
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
    for folder in folders:
        _kill_redis_of_a_killed_service(folder)


def _kill_redis_of_a_killed_service(folder: Path) -> None:
    """The next service on the folder would have stopped it; there is none."""
    with suppress(FileNotFoundError, ProcessLookupError):
        pid = int((folder / "redis" / "redis.pid").read_text())
        if str(folder) in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def one_process(request: pytest.FixtureRequest) -> None:
    """The test is about one process."""
    if request.config.getoption("--target") != "process":
        pytest.skip("about one process")


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    """Somebody's own Redis."""
    with RedisProcess(tmp_path_factory.mktemp("own-redis"), "--appendonly", "yes") as redis:
        yield redis


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """`copied(bundles)`: a store that the test may change."""

    def copy(bundles: Path) -> Path:
        return Path(shutil.copytree(bundles, tmp_path / "bundles"))

    return copy
