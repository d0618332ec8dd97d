"""Who may do what: the ACL user of the documents, and connections by TLS on both sides' certificates."""

from __future__ import annotations

import re
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import asyncio as redis
from redis.exceptions import NoPermissionError

from loadtest.errors import LoadtestError
from loadtest.stress.faulty_proxy import FaultyProxy
from loadtest.stress.redis_process import RedisProcess, free_port
from service.deadline import Deadline
from service.errors import StoreUnavailableError
from service.redis_connections import TlsFiles
from service.sequence_store import SequenceStore, StoredEvent, StoreOptions
from tests.documents import DOCUMENTS

pytestmark = pytest.mark.anyio
IN_TIME = Deadline(time.monotonic() + 3600)
OPTIONS = StoreOptions(read_timeout_ms=2000, write_timeout_ms=5000, breaker_cooldown_ms=50)
ACL_OF_DOCUMENTS = re.search(r"^ACL SETUSER (.+)$", DOCUMENTS, re.MULTILINE)


def acl() -> list[str]:
    assert ACL_OF_DOCUMENTS is not None
    return ACL_OF_DOCUMENTS[1].replace("PASSWORD", "secret").split()


async def use_all_of(store: SequenceStore) -> None:
    """Everything that the service does with Redis."""
    await store.ping()
    assert await store.read("nobody", IN_TIME) is None
    await store.append([StoredEvent("u", "a", 1), StoredEvent("other", "b", 2)])
    await store.append([StoredEvent("u", "b", 2)])
    sequence = await store.read("u", IN_TIME)
    assert sequence is not None
    assert sequence.item_ids == ["a", "b"]


@pytest.mark.parametrize("db", [0, 3])
async def test_the_acl_of_the_readme_is_enough_and_nothing_else_is_used(tmp_path: Path, db: int) -> None:
    with RedisProcess(tmp_path, "--user", *acl()) as server:
        async with redis.Redis.from_url(server.url) as root:
            await root.config_resetstat()
            store = SequenceStore(f"redis://recall:secret@127.0.0.1:{server.port}/{db}", OPTIONS)
            await use_all_of(store)
            await root.script_flush()  # as a restart would: the script is sent again
            await store.append([StoredEvent("u", "c", 3)])
            await store.close()
            used = {name.split("_", 1)[1] for name in await root.info("commandstats")}
        allowed = {word[1:] for word in acl() if word.startswith("+")}
        assert used - {"config|resetstat", "config", "info", "script", "script|flush", "auth"} <= allowed
        if db:
            assert "select" in used


@pytest.mark.parametrize(
    "command",
    ["GET elsewhere", "KEYS *", "FLUSHALL", "CONFIG GET *", "DEL t2diff:seq1:u", "ACL WHOAMI", "SCAN 0"],
)
async def test_the_acl_of_the_readme_allows_nothing_else(tmp_path: Path, command: str) -> None:
    with RedisProcess(tmp_path, "--user", *acl()) as server:
        async with redis.Redis.from_url(f"redis://recall:secret@127.0.0.1:{server.port}/0") as client:
            with pytest.raises(NoPermissionError):
                await client.execute_command(*command.split())


@pytest.mark.parametrize("missing", ["echo", "evalsha", "strlen", "get", "set"])
async def test_an_acl_without_a_command_that_is_needed_is_named_and_nothing_is_lost(
    tmp_path: Path, missing: str
) -> None:
    with RedisProcess(tmp_path, "--user", *acl()) as server:
        store = SequenceStore(f"redis://recall:secret@127.0.0.1:{server.port}/0", OPTIONS)
        await store.append([StoredEvent("u", "a", 1)])
        async with redis.Redis.from_url(server.url) as root:
            await root.execute_command("ACL", "SETUSER", "recall", f"-{missing}")
            with pytest.raises(StoreUnavailableError, match="ACL") as refused:
                await store.append([StoredEvent("u", "b", 2)])
            assert refused.value.reason == "no_permission"
            if missing != "set":
                with pytest.raises(StoreUnavailableError, match="ACL"):
                    await store.read("u", IN_TIME)
            await root.execute_command("ACL", "SETUSER", "recall", f"+{missing}")
        sequence = await store.read("u", IN_TIME)
        assert sequence is not None
        assert sequence.item_ids[0] == "a"
        await store.close()


async def test_a_wrong_password_or_user_is_named_without_quoting_it(tmp_path: Path) -> None:
    with RedisProcess(tmp_path, "--requirepass", "right") as server:
        for entrance in (":wrong-one@", "somebody:wrong-one@", ""):
            store = SequenceStore(f"redis://{entrance}127.0.0.1:{server.port}/0", OPTIONS)
            with pytest.raises(StoreUnavailableError, match="user or password") as refused:
                await store.read("secret-user", IN_TIME)
            assert refused.value.reason == "password"
            assert "wrong-one" not in str(refused.value)
            await store.close()


class Certificates:
    """An authority, and what it vouches for: a server on 127.0.0.1 and a client."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        days = ["-nodes", "-days", "2"]
        for name in ("ca", "stranger"):
            self._run(*new, *days, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
        for name in ("server", "client"):
            signed_by = ["-CA", "ca.pem", "-CAkey", "ca.key"]
            alternative = ["-addext", "subjectAltName=IP:127.0.0.1"]
            files = ["-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}"]
            self._run(*new, *days, *signed_by, *alternative, "-addext", "basicConstraints=CA:FALSE", *files)

    def __call__(self, name: str) -> str:
        return str(self.folder / name)

    def _run(self, *command: str) -> None:
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(params=["a proxy", "Redis"])
def tls_port(request: pytest.FixtureRequest, tmp_path: Path, certificates: Certificates) -> Iterator[int]:
    """Where TLS with a client's certificate leads to Redis; the embedded binary cannot do TLS itself."""
    if request.param == "Redis":
        port = free_port()
        options = ["--tls-port", str(port), "--tls-ca-cert-file", certificates("ca.pem")]
        options += [
            "--tls-cert-file",
            certificates("server.pem"),
            "--tls-key-file",
            certificates("server.key"),
        ]
        try:
            with RedisProcess(tmp_path, *options):
                yield port
        except LoadtestError:
            pytest.skip("this redis-server was built without TLS")
        return
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates("ca.pem"))
    context.load_cert_chain(certificates("server.pem"), certificates("server.key"))
    context.verify_mode = ssl.CERT_REQUIRED
    with RedisProcess(tmp_path) as server, FaultyProxy(server.port, tls=context) as proxy:
        yield proxy.port


async def test_redis_by_tls_with_a_certificate_of_our_own(tls_port: int, certificates: Certificates) -> None:
    ours = TlsFiles(certificates("ca.pem"), certificates("client.pem"), certificates("client.key"))
    store = SequenceStore(f"rediss://127.0.0.1:{tls_port}/0", OPTIONS._replace(tls=ours))
    await use_all_of(store)
    await store.close()


@pytest.mark.parametrize(
    ("ca", "name"), [("stranger.pem", "client"), (None, "client"), ("ca.pem", None), ("ca.pem", "stranger")]
)
async def test_a_certificate_that_is_not_vouched_for_opens_nothing(
    tls_port: int, certificates: Certificates, ca: str | None, name: str | None
) -> None:
    files = TlsFiles(
        ca and certificates(ca), name and certificates(f"{name}.pem"), name and certificates(f"{name}.key")
    )
    store = SequenceStore(f"rediss://127.0.0.1:{tls_port}/0", OPTIONS._replace(tls=files))
    with pytest.raises(StoreUnavailableError) as refused:
        await store.read("u", IN_TIME)
    assert refused.value.reason in ("tls", "connection")
    await store.close()


async def test_a_certificate_for_another_host_is_refused(certificates: Certificates, tls_port: int) -> None:
    ours = TlsFiles(certificates("ca.pem"), certificates("client.pem"), certificates("client.key"))
    store = SequenceStore(f"rediss://localhost:{tls_port}/0", OPTIONS._replace(tls=ours))
    with pytest.raises(StoreUnavailableError) as refused:
        await store.read("u", IN_TIME)
    assert refused.value.reason == "tls"
    await store.close()
