"""A public address is not served to everybody by accident."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from service.exposure import check_exposure, is_loopback
from service.server import serve
from service.settings import ServiceSettings

pytestmark = pytest.mark.anyio


@contextmanager
def bound(host: str) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_STREAM)) as listening:
        try:
            listening.bind((host, 0))
        except OSError as error:
            pytest.skip(f"this machine has no {host}: {error}")
        yield listening


def check(host: str, admin_host: str, **settings: Any) -> None:
    with bound(host) as public, bound(admin_host) as admin:
        named = ServiceSettings(bundles="x", host=host, admin_host=admin_host, **settings)
        check_exposure(named, {"host": public, "admin_host": admin})


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("0.0.0.0", False), ("::", False), ("", False)],
)
def test_loopback_is_told_from_what_was_bound(host: str, loopback: bool) -> None:
    with bound(host) as listening:
        assert is_loopback(listening) is loopback


@pytest.mark.parametrize(
    ("host", "admin_host", "named"),
    [("0.0.0.0", "127.0.0.1", "host"), ("127.0.0.1", "0.0.0.0", "admin_host")],
)
def test_a_public_address_without_keys_is_refused_with_the_remedies(
    host: str, admin_host: str, named: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"^{named} \(--.*'0.0.0.0' can be reached by others") as error:
        check(host, admin_host)
    for remedy in ("--api-keys", "t2diff-serve keys new", "127.0.0.1", "--allow-anonymous true"):
        assert remedy in str(error.value)
    assert "\n" not in str(error.value)
    check(host, admin_host, allow_anonymous=True)
    check(host, admin_host, api_keys=tmp_path)


def test_loopback_needs_nothing() -> None:
    check("127.0.0.1", "127.0.0.1")


def test_keys_and_strangers_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^allow_anonymous: contradicts api_keys"):
        check("127.0.0.1", "127.0.0.1", api_keys=tmp_path, allow_anonymous=True)


async def test_a_service_asks_before_it_starts_anything(bundles: Path, tmp_path: Path) -> None:
    """Neither what others can reach, nor keys or certificates that cannot be used, leave anything behind."""
    for wrong, message in (
        ({"host": "0.0.0.0"}, "host .*can be reached by others"),
        ({"admin_host": "0.0.0.0"}, "admin_host .*can be reached by others"),
        ({"api_keys": tmp_path / "none"}, "api_keys: .*none: cannot be read: No such file"),
        ({"tls_key": tmp_path / "none"}, "tls_certificate .*is missing"),
    ):
        named: dict[str, Any] = {"bundles": str(bundles), "state_dir": tmp_path / "state", "port": 0}
        with pytest.raises(ValueError, match=message):
            async with asyncio.timeout(60):  # one that starts would run on
                await serve(ServiceSettings(**(named | {"admin_port": 0} | wrong)), announce=print)
        assert not (tmp_path / "state").exists()
