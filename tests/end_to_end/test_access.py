"""Keys, rates and TLS on a running service, over real sockets, with its own command for the keys."""

from __future__ import annotations

import json
import re
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.certificates import Authority
from tests.waiting import eventually

ASKED = {"user_id": "u", "top_k": 3}


def keys(*arguments: str) -> str:
    """`t2diff-serve keys …`; what it printed."""
    command = [sys.executable, "-m", "service.cli", "keys", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def new(file: Path, caller: str, scopes: str, *more: str) -> str:
    return keys("new", "--file", str(file), "--caller", caller, "--scopes", scopes, *more)


def bearing(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys"


@pytest.fixture(scope="module")
def admin_key(file: Path) -> str:
    return new(file, "operator", "admin,metrics")


@pytest.fixture(scope="module")
def served(serve: Any, tiny_bundles: Path, file: Path, admin_key: str) -> Any:
    return serve(tiny_bundles, api_keys=file, log_requests="all", log_level="debug")


def test_a_key_is_made_rotated_and_revoked_while_the_service_runs(served: Any, file: Path) -> None:
    with served.client() as client:

        def status(key: str) -> int:
            return client.post("/recall", json=ASKED, headers=bearing(key)).status_code

        assert client.post("/recall", json=ASKED).status_code == 401
        assert client.get("/v2/health/ready").status_code == 200
        old = new(file, "ranker", "recall,events")
        eventually(lambda: status(old) == 200, "the first key does not open")
        event = {"user_id": "u", "item_id": "i3"}
        assert client.post("/events", json=event, headers=bearing(old)).json()["accepted"] == 1
        young = new(file, "ranker", "recall")
        eventually(lambda: status(young) == 200, "the second key does not open")
        assert status(old) == 200, "both live at once"
        keys("revoke", "--file", str(file), old[7:19])
        eventually(lambda: status(old) == 401, "the revoked key still opens")
        assert status(young) == 200
        whole = file.read_bytes()
        file.write_bytes(b"{")
        eventually(
            lambda: served.metric("t2diff_key_loads_total", outcome="refused") == 1,
            "the broken file was not refused",
        )
        assert (status(young), status(old)) == (200, 401)
        file.write_bytes(whole)
    listed = keys("list", "--file", str(file))
    assert young[7:19] in listed
    assert young not in listed


def test_admin_calls_take_the_admin_scope_and_metrics_on_loopback_none(served: Any, admin_key: str) -> None:
    url = f"{served.admin_url}/admin/reload"
    assert httpx.post(url).status_code == 401
    assert httpx.post(url, headers=bearing(admin_key)).json()["outcome"] == "unchanged"
    assert httpx.get(f"{served.admin_url}/metrics").status_code == 200


def test_one_caller_beyond_its_rate_is_refused_and_the_other_is_not(served: Any, file: Path) -> None:
    greedy = new(file, "greedy", "recall", "--rate", "0.01", "--burst", "5")
    modest = new(file, "modest", "recall")
    with served.client() as client:

        def ask(key: str) -> httpx.Response:
            return client.post("/recall", json=ASKED, headers=bearing(key))

        eventually(lambda: ask(modest).status_code == 200, "the keys were not read")
        answers = [(ask(greedy), ask(modest)) for _ in range(50)]
    assert [greedily.status_code for greedily, _ in answers] == [200] * 5 + [429] * 45
    assert all(modestly.status_code == 200 for _, modestly in answers)
    refused = answers[-1][0]
    assert int(refused.headers["retry-after"]) >= 90
    assert refused.json()["type"] == "urn:t2diff:problem:over-rate"
    assert served.metric("t2diff_caller_requests_total", caller="greedy", outcome="over_rate") == 45


def test_no_key_is_in_a_log_an_answer_or_a_metric(served: Any, file: Path, admin_key: str) -> None:
    """Whatever way it comes: right, wrong, of the wrong kind, revoked, in the file by mistake."""
    key = new(file, "canary", "recall", "--rate", "0.01", "--burst", "3")
    strange = "t2diff_c0ffee123456_" + "canary" * 7 + "x"
    answers = []
    with served.client() as client:

        def ask(path: str, *authorization: str) -> int:
            headers = [("Authorization", value) for value in authorization]
            answers.append(client.post(path, json=ASKED, headers=headers))
            return int(answers[-1].status_code)

        eventually(lambda: ask("/events", f"Bearer {key}") == 403, "the key is not known")
        got = {ask("/recall", f"Bearer {key}") for _ in range(8)}
        assert got == {200, 429}
        for wrong in (f"Basic {key}", f"Bearer {key}x", key, f"Bearer {strange}", f"Bearer {key},{key}"):
            assert ask("/recall", wrong) == 401
        assert ask("/recall", f"Bearer {key}", f"Bearer {key}") == 401
        ask("/nothing", f"Bearer {key}")
        whole = file.read_bytes()
        before = served.metric("t2diff_key_loads_total", outcome="refused")
        file.write_bytes(whole + json.dumps({"sha256": key, "caller": strange}).encode())
        eventually(
            lambda: served.metric("t2diff_key_loads_total", outcome="refused") > before,
            "the broken file was not refused",
        )
        file.write_bytes(whole)
    metrics = httpx.get(f"{served.admin_url}/metrics").text
    eventually(lambda: '"caller":"canary"' in served.log, "the caller is not in the log")
    told = served.log + metrics + "".join(f"{one.text}{one.headers}" for one in answers)
    for secret in (key, key[20:], strange, strange[20:], admin_key):
        assert secret not in told


def test_it_does_not_start_on_a_public_address_without_keys(tiny_bundles: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service.cli", "--bundles", str(tiny_bundles), "--host", "0.0.0.0"]
    command += ["--port", "0", "--admin-port", "0", "--state-dir", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert re.match(r"t2diff-serve: host \(--host, .*--api-keys.*--allow-anonymous true\n$", ended.stderr)


def test_tls_with_certificates_of_clients_on_a_public_address(
    serve: Any, tiny_bundles: Path, file: Path, admin_key: str, tmp_path: Path
) -> None:
    """Both listeners: the admin one is as public as the other, so its metrics take a key too."""
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server")
    client_files = authority.issue("client")
    served = serve(
        tiny_bundles,
        api_keys=file,
        host="0.0.0.0",
        admin_host="0.0.0.0",
        tls_certificate=certificate,
        tls_key=key,
        tls_client_ca=authority.certificate,
    )
    urls = [url.replace("0.0.0.0", "127.0.0.1") for url in (served.url, served.admin_url)]
    assert all(url.startswith("https://") for url in urls)
    ours = ssl.create_default_context(cafile=authority.certificate)
    for url in urls:
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/v2/health/live", verify=ours)  # no certificate of its own
        with pytest.raises(httpx.TransportError):
            httpx.get(url.replace("https", "http"))
    ours.load_cert_chain(*client_files)
    with httpx.Client(verify=ours) as client:
        assert client.get(f"{urls[0]}/v2/health/live").status_code == 200
        assert client.post(f"{urls[0]}/recall", json=ASKED).status_code == 401
        assert client.get(f"{urls[1]}/metrics").status_code == 401
        assert client.get(f"{urls[1]}/metrics", headers=bearing(admin_key)).status_code == 200
    address = ("127.0.0.1", served.port)
    with socket.create_connection(address):  # a handshake that never comes holds up nobody's end
        assert served.stop() == 0
