"""What the demos do step by step: print a command before it runs, wait for the service, ask it."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
START_TIMEOUT_S = 120


class DemoError(Exception):
    """A step did not give what it must."""


def await_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until the service is ready. Raises DemoError when it ends before, or takes too long."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DemoError(f"the service ended with exit code {process.returncode} before it was ready")
        try:
            with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise DemoError(f"the service was not ready within {START_TIMEOUT_S} s")


def post(url: str, path: str, body: Any, shown: Any = None) -> dict[str, Any]:
    """Post `body` as JSON and print call (with `shown` in its place) and answer. Raises DemoError."""
    text = json.dumps(shown or body, ensure_ascii=False)
    print(f"\n$ curl -s {url}{path} -H 'Content-Type: application/json' -d '{text}'")
    request = urllib.request.Request(
        url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            answer: dict[str, Any] = json.load(response)
            timing = response.headers.get("Server-Timing")
    except urllib.error.HTTPError as error:
        raise DemoError(f"POST {path} answered {error.code}: {error.read().decode()}") from None
    candidates = answer.get("candidates")
    if candidates is None:
        print(f"  {json.dumps(answer)}")
        return answer
    lines = [f"   {json.dumps(entry)}" for entry in candidates[:3]]
    rest = f"\n   … {len(candidates) - 3} more" if len(candidates) > 3 else ""
    head = {key: value for key, value in answer.items() if key != "candidates"}
    print(
        "  "
        + json.dumps(head)
        + "\n"
        + "\n".join(lines)
        + rest
        + (f"\n  Server-Timing: {timing}" if timing else "")
    )
    return answer


def free_port(wanted: int) -> int:
    """`wanted`, or one that the system gives when it is taken."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise DemoError(f"no free port, tried {wanted}")


def run(command: str, *arguments: object) -> None:
    """Run a command of this project, printed first. Raises CalledProcessError when it fails."""
    print_command([command, *arguments])
    subprocess.run([str(BIN / command), *map(str, arguments)], check=True)


def print_command(command: list[Any]) -> None:
    """As a person would type it."""
    print(f"\n$ {shlex.join(map(str, command))}", flush=True)


def title(text: str) -> None:
    """What comes next."""
    print(f"\n\033[1m== {text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)
