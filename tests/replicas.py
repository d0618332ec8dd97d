"""Three services behind HAProxy, with the configuration that deploy/ shows, as if they were one."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from loadtest.stress.redis_process import free_port

CONFIG = Path(__file__).parents[1] / "deploy" / "haproxy" / "haproxy.cfg"
NUM_REPLICAS = 3


class Replicas:
    """Looks like one served process to tests that only speak HTTP; `each` are the processes."""

    def __init__(
        self, start: Callable[..., Any], bundles: Path, folder: Path, settings: dict[str, Any]
    ) -> None:
        """start: one service with these settings"""
        self.each = [start(bundles, **settings) for _ in range(NUM_REPLICAS)]
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        config, self._log = folder / "haproxy.cfg", folder / "haproxy.log"
        config.write_text(configured([replica.port for replica in self.each], self.port))
        haproxy = shutil.which("haproxy")
        assert haproxy is not None
        with self._log.open("wb") as said:
            self._proxy = subprocess.Popen([haproxy, "-db", "-f", config], stdout=said, stderr=said)
        self._wait()

    @property
    def greeting(self) -> str:
        return str(self.each[0].greeting)

    @property
    def bundle(self) -> str:
        return str(self.each[0].bundle)

    @property
    def log(self) -> str:
        return "".join(replica.log for replica in self.each)

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, **options)

    def metric(self, name: str, **labels: str) -> float:
        """The sum over the replicas."""
        return sum(replica.metric(name, **labels) for replica in self.each)

    def close(self) -> None:
        """End the proxy."""
        self._proxy.terminate()
        self._proxy.wait(10)

    def _wait(self) -> None:
        """Until the proxy has found every replica ready."""
        give_up_at = time.monotonic() + 30
        found: set[str] = set()
        while len(found) < NUM_REPLICAS:
            assert self._proxy.poll() is None, self._log.read_text()
            assert time.monotonic() < give_up_at, f"HAProxy found only {len(found)} replicas"
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                for replica in self.each:
                    if httpx.get(f"{self.url}/v2/health/ready").status_code == 200 and _asked(replica):
                        found.add(replica.url)
            except OSError:
                pass
            time.sleep(0.05)


def configured(ports: Sequence[int], listen: int) -> str:
    """deploy/haproxy/haproxy.cfg with these addresses in place of the example's."""
    servers = "\n".join(f"    server replica-{port} 127.0.0.1:{port}" for port in ports)
    text, num_bound = re.subn(r"bind :8080", f"bind 127.0.0.1:{listen}", CONFIG.read_text())
    text, num_servers = re.subn(r"(?m)(^    server replica-\d 10\S+\n?)+", servers + "\n", text)
    assert (num_bound, num_servers) == (1, 1)
    return text


def _asked(replica: Any) -> bool:
    """Whether the proxy has looked at a replica, which then shares in the requests."""
    return bool(replica.metric("t2diff_responses_total", route="health", status="200") >= 2)
