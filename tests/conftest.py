"""An S3-compatible server for every folder's tests: a process of its own, over real sockets."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator

import pytest

from tests.s3_server import Connection, S3Server

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the workers share the cores


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--target replicas`: the end-to-end tests marked `any_target` against replicas behind HAProxy."""
    parser.addoption("--target", choices=["process", "replicas"], default="process")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Say at once which test failed: a run that is cut off later has no summary."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\nFAILED {report.nodeid} ({report.when})", flush=True)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One server, started for the first test that asks for it."""
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def connect(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """connect(endpoint): from now on `s3://` means that endpoint, here and in processes started from here."""
    import s3fs

    def use(endpoint: str) -> None:
        for name, value in s3_server.environment(endpoint).items():
            monkeypatch.setenv(name, value)
        if endpoint != s3_server.endpoint_in_use:  # which clients keep that were made with it
            s3fs.S3FileSystem.clear_instance_cache()
            s3_server.endpoint_in_use = endpoint

    use(s3_server.url)
    return use


@pytest.fixture
def s3_url(connect: Callable[[str], None]) -> str:
    """The URL of an empty store in a bucket of its own."""
    import s3fs

    bucket = f"bucket-{uuid.uuid4().hex}"
    s3fs.S3FileSystem().mkdir(bucket)
    return f"s3://{bucket}/nightly/store"


@pytest.fixture
def connection(s3_server: S3Server, s3_url: str, connect: Callable[[str], None]) -> Iterator[Connection]:
    """`s3://` through a connection that a test can watch and cut."""
    with Connection(s3_server.port) as connection:
        connect(connection.url)
        yield connection
