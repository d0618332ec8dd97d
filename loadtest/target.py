"""What is being loaded: which hosts are allowed, what the service says about itself, and the hardware."""

from __future__ import annotations

import asyncio
import ipaddress
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import psutil

from loadtest.errors import LoadtestError

_TIMEOUT = aiohttp.ClientTimeout(total=5.0)


def check_url(url: str, *, allow_remote: bool) -> str:
    """The service's base URL without a trailing slash; LoadtestError unless it may be loaded."""
    parts = urlsplit(url)
    try:
        host, _ = parts.hostname, parts.port  # reading .port checks it
    except ValueError:
        host = None
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise LoadtestError(f"url {url!r} is not of the form http://HOST:PORT")
    if not allow_remote and not is_loopback_url(url):
        raise LoadtestError(
            f"host {host!r} is not this machine: load goes to loopback only; "
            "if that service is yours to load, pass --allow-remote"
        )
    return url.rstrip("/")


def is_loopback_url(url: str) -> bool:
    """Whether a URL's host is `localhost` or a loopback address; nothing is looked up."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def key_headers(key_file: Path | str | None) -> dict[str, str]:
    """What a request to a service with API keys carries; the file holds one key. Raises LoadtestError."""
    if key_file is None:
        return {}
    try:
        key = Path(key_file).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII"
        raise LoadtestError(f"key-file {key_file}: cannot be read: {reason}") from None
    if not key.isprintable() or not key:
        raise LoadtestError(f"key-file {key_file}: holds no key in one line")
    return {"Authorization": f"Bearer {key}"}


def describe_service(url: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The answer of GET /v2/models/recall; LoadtestError when the service is not there or not ready."""
    return asyncio.run(_describe_service(url, headers or {}))


async def _describe_service(url: str, headers: Mapping[str, str]) -> dict[str, Any]:
    try:
        async with aiohttp.ClientSession(timeout=_TIMEOUT, headers=headers) as session:
            async with session.get(f"{url}/v2/health/ready", allow_redirects=False) as response:
                if response.status != 200:
                    raise LoadtestError(
                        f"service at {url} is not ready (GET /v2/health/ready: {response.status})"
                    )
            async with session.get(f"{url}/v2/models/recall", allow_redirects=False) as response:
                if response.status in (401, 403):
                    raise LoadtestError(
                        f"the service at {url} takes API keys: name a file with one of the scope recall, "
                        "and to seed also events, by --key-file"
                    )
                description = await response.json() if response.status == 200 else None
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        raise LoadtestError(
            f"service not reachable at {url} ({reason}): start it with t2diff-serve"
        ) from None
    if not isinstance(description, dict):
        raise LoadtestError(f"{url} does not describe itself at /v2/models/recall: is it the recall service?")
    if isinstance(description.get("index"), dict):  # only the kind is of interest here
        description["index"] = description["index"].get("kind")
    return description


def describe_hardware(*, device: str | None) -> dict[str, Any]:
    """This machine: CPU model, cores, memory; its GPU too when the service says that it computes on one."""
    return {
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(logical=True),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": _gpu_model() if device and "cuda" in device.lower() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def git_commit() -> str | None:
    """The commit of the code that runs, `-dirty` with uncommitted changes; None outside a repository."""
    folder = Path(__file__).parent
    commit = _first_line(["git", "-C", str(folder), "rev-parse", "HEAD"])
    if commit is None:
        return None
    return commit + (
        "-dirty" if _first_line(["git", "-C", str(folder), "status", "--porcelain", "-uno"]) else ""
    )


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _gpu_model() -> str | None:
    return _first_line(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])


def _first_line(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()[0].strip() if done.stdout.strip() else None
