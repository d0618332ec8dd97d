"""A local proxy before several services that sends requests to the ready ones: HAProxy, or a stand-in.

Both ask every 100 ms for /v2/health/ready and go by the answer. The stand-in (`ready_proxy.py`) is for
machines without HAProxy; a report says which of them ran.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtest.errors import LoadtestError
from loadtest.stress.redis_process import free_port

CHECK_MS = 100
_START_TIMEOUT_S = 20.0
_CONFIG = """
global
    maxconn 4000
defaults
    mode http
    timeout connect 1s
    timeout client 60s
    timeout server 60s
    timeout check 1s
frontend recall
    bind 127.0.0.1:{port}
    default_backend services
backend services
    option httpchk GET /v2/health/ready
    http-check expect status 200
    default-server check inter {check_ms}ms fall 1 rise 1
{servers}
"""


@dataclass(frozen=True)
class Balancer:
    """kind: `haproxy` and its version, or `stand-in`"""

    kind: str
    url: str


@contextmanager
def started_balancer(ports: Sequence[int], folder: Path) -> Iterator[Balancer]:
    """HAProxy where there is one on PATH, else the stand-in, before the services on `ports`."""
    port = free_port()
    haproxy = shutil.which("haproxy")
    if haproxy is None:
        kind = "stand-in"
        command = [sys.executable, "-m", "loadtest.stress.ready_proxy", str(port), *map(str, ports)]
    else:
        said = subprocess.run([haproxy, "-v"], capture_output=True, text=True, check=True).stdout
        kind = " ".join(said.split()[:3])
        servers = "\n".join(f"    server service-{port} 127.0.0.1:{port}" for port in ports)
        config = folder / "haproxy.cfg"
        config.write_text(_CONFIG.format(port=port, check_ms=CHECK_MS, servers=servers))
        command = [haproxy, "-db", "-f", str(config)]
    log = folder / "balancer.log"
    with log.open("wb") as said_to:
        process = subprocess.Popen(command, stdout=said_to, stderr=said_to)
    try:
        _wait(process, port, log)
        yield Balancer(kind, f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    give_up_at = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > give_up_at:
                raise LoadtestError(f"the balancer did not start: {log.read_text()[-500:]}") from None
            time.sleep(0.05)
