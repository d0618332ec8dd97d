"""Which hosts may be loaded, and what is said about the hardware."""

from __future__ import annotations

import pytest

from loadtest.errors import LoadtestError
from loadtest.target import check_url, describe_hardware, describe_service


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000", "http://localhost:8000/", "http://[::1]:8000", "http://127.8.9.1"]
)
def test_loopback_may_be_loaded(url):
    assert check_url(url, allow_remote=False) == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        "http://recall.example.com:8000",
        "http://10.0.0.7:8000",
        "http://0.0.0.0:8000",
        "http://127.0.0.1.example.com",
        "http://127.0.0.1@example.com",
        "http://localhost.example.com",
    ],
)
def test_other_hosts_are_refused_unless_allowed(url):
    with pytest.raises(LoadtestError, match="--allow-remote"):
        check_url(url, allow_remote=False)
    assert check_url(url, allow_remote=True) == url


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://127.0.0.1", "http://", "http://127.0.0.1:99999", ""]
)
def test_what_is_not_a_url_is_refused(url):
    with pytest.raises(LoadtestError, match="is not of the form"):
        check_url(url, allow_remote=True)


def test_a_ready_service_describes_itself(server):
    assert describe_service(server.url)["model"] == "t2diff"


def test_a_service_that_is_not_ready_or_not_there_is_named(server):
    server.behave(ready=False)
    with pytest.raises(LoadtestError, match="not ready"):
        describe_service(server.url)
    with pytest.raises(LoadtestError, match=r"not reachable at http://127\.0\.0\.1:1 "):
        describe_service("http://127.0.0.1:1")


def test_the_hardware_is_named_and_a_gpu_only_when_the_service_uses_one():
    hardware = describe_hardware(device="cpu")
    assert hardware["cpu"]
    assert hardware["logical_cores"] >= 1
    assert hardware["gpu"] is None
