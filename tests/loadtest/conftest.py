"""One misbehaving recall server for all tests of the load generator."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest.generator import STAGES, Samples
from loadtest.probe import ProbeSettings


@dataclass(frozen=True)
class Server:
    url: str

    def behave(self, **how: Any) -> None:
        """Set the server's behaviour (fields of recall_server.Behaviour); count requests anew."""
        request = urllib.request.Request(f"{self.url}/behave", data=json.dumps(how).encode())
        urllib.request.urlopen(request, timeout=10).read()

    def seen(self) -> dict[str, Any]:
        """The users asked for and the events posted since."""
        return json.loads(urllib.request.urlopen(f"{self.url}/seen", timeout=10).read())

    def settings(self, **changes: Any) -> ProbeSettings:
        """A short probe of this server."""
        values = {
            "url": self.url,
            "duration_s": 0.5,
            "warmup_s": 0.0,
            "num_users": 10,
            "top_k": 5,
            "arrivals": "constant",
            "timeout_ms": 20_000.0,
            "max_connections": 100,
            "seed": 0,
            "pin_cpu": None,
        }
        return ProbeSettings(**(values | changes))


@pytest.fixture(scope="session")
def running_server() -> Iterator[Server]:
    script = Path(__file__).with_name("recall_server.py")
    process = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    yield Server(url=f"http://127.0.0.1:{int(process.stdout.readline())}")
    process.terminate()
    process.wait(10)


@pytest.fixture
def server(running_server: Server) -> Server:
    running_server.behave()
    return running_server


@pytest.fixture
def samples() -> Callable[..., Samples]:
    """Hand-made samples: `samples(n, status=..., ...)`."""
    return _samples


def _samples(n: int, **columns: Any) -> Samples:
    """n requests at 10/s that each took 10 ms and were answered well, but for the columns given."""
    intended = np.arange(n) / 10
    values: dict[str, Any] = {
        "intended": intended,
        "sent": intended,
        "ended": intended + 0.010,
        "status": np.full(n, 200, np.int16),
        "degraded": np.zeros(n, bool),
        "short": np.zeros(n, bool),
        "stages_s": np.full((n, len(STAGES)), np.nan),
        "batch_size": np.zeros(n, np.int32),
        "route": np.zeros(n, np.int16),
        "bundle": np.full(n, -1, np.int16),
        "names": ("t2diff",),
        "waited_for_connection": 0,
        "cpu_share": 0.1,
    }
    return Samples(**(values | columns))
