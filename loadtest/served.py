"""Services that a load test starts itself: real processes on CPUs of their own, and what they have used."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil

from loadtest.errors import LoadtestError

START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 15.0
_URL = re.compile(r"^ *(recall|admin) +(http://\S+)", re.MULTILINE)
_STAGE_CPU = re.compile(r'^t2diff_device_cpu_seconds_total\{stage="(\w+)"\} (\S+)$', re.MULTILINE)


class CpuUsed(NamedTuple):
    """Processor seconds: of the service, of its Redis, and of the service in two of its stages."""

    process: float
    redis: float
    tower: float
    search: float

    @property
    def overhead(self) -> float:
        """The service's process outside tower and search."""
        return self.process - self.tower - self.search


@dataclass(frozen=True)
class Served:
    """A running service, or the floor, which has no admin port.

    start_s: from the start of its process until it was ready, its Redis included
    """

    name: str
    url: str
    admin_url: str | None
    process: subprocess.Popen[bytes]
    start_s: float

    @contextmanager
    def measuring_cpu(self) -> Iterator[list[CpuUsed]]:
        """What is used in between is put into the list at the end.

        Reading /metrics takes the service some milliseconds: that is left out. The system counts processes'
        time in hundredths of a second.
        """
        found: list[CpuUsed] = []
        stages_before = self._stage_seconds()
        before = self._process_seconds()
        yield found
        after = self._process_seconds()
        stages = [now - then for now, then in zip(self._stage_seconds(), stages_before, strict=True)]
        found.append(CpuUsed(after[0] - before[0], after[1] - before[1], *stages))

    def _process_seconds(self) -> tuple[float, float]:
        process = psutil.Process(self.process.pid)
        return _seconds(process), sum(map(_seconds, process.children(recursive=True)))

    def _stage_seconds(self) -> tuple[float, float]:
        stages: dict[str, float] = {}
        if self.admin_url is not None:
            with urllib.request.urlopen(f"{self.admin_url}/metrics", timeout=10) as response:
                stages = {name: float(value) for name, value in _STAGE_CPU.findall(response.read().decode())}
        return stages.get("tower", 0.0), stages.get("search", 0.0)

    def memory_bytes(self) -> int:
        """Resident now, mapped files included."""
        return psutil.Process(self.process.pid).memory_info().rss


@contextmanager
def on_cpus(cpus: Sequence[int]) -> Iterator[None]:
    """This thread, and every process and thread that it starts meanwhile, on these CPUs only."""
    process = psutil.Process()
    before = process.cpu_affinity()
    process.cpu_affinity(list(cpus))
    try:
        yield
    finally:
        process.cpu_affinity(before)


@contextmanager
def started_service(
    name: str, bundles: str, *, options: Sequence[str], cpus: Sequence[int], folder: Path, port: int = 0
) -> Iterator[Served]:
    """`t2diff-serve` with a Redis of its own unless `options` name one; both on `cpus`.

    folder: for state and log   port: 0 for a free one
    """
    command = ["-m", "service.cli", "--bundles", bundles, "--port", str(port), "--admin-port", "0"]
    command += ["--state-dir", str(folder / "state"), "--reload-poll-s", "0", *options]
    with _started(name, command, cpus=cpus, folder=folder, ready="redis") as served:
        yield served


@contextmanager
def started_floor(top_k: int, *, cpus: Sequence[int], folder: Path) -> Iterator[Served]:
    """`loadtest.floor` on `cpus`."""
    command = ["-m", "loadtest.floor", str(top_k)]
    with _started("floor", command, cpus=cpus, folder=folder, ready="recall") as served:
        yield served


@contextmanager
def _started(
    name: str, command: list[str], *, cpus: Sequence[int], folder: Path, ready: str
) -> Iterator[Served]:
    folder.mkdir(parents=True, exist_ok=True)
    said, log = folder / "said", folder / "log"
    began = time.monotonic()
    with said.open("wb") as out, log.open("wb") as errors, on_cpus(cpus):
        process = subprocess.Popen([sys.executable, *command], stdout=out, stderr=errors)
    try:
        urls = _urls(name, process, said, log, ready)
        yield Served(name, urls["recall"], urls.get("admin"), process, time.monotonic() - began)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _urls(name: str, process: subprocess.Popen[bytes], said: Path, log: Path, ready: str) -> dict[str, str]:
    give_up_at = time.monotonic() + START_TIMEOUT_S
    while not re.search(rf"^ *{ready} .*\n", text := said.read_text(), re.MULTILINE):
        if process.poll() is not None:
            last = (log.read_text().strip().splitlines() or ["it said nothing"])[-1]
            raise LoadtestError(f"service {name!r} did not start: {last[:500]}")
        if time.monotonic() > give_up_at:
            raise LoadtestError(f"service {name!r} was not ready after {START_TIMEOUT_S:g} s; see {log}")
        time.sleep(0.05)
    return dict(_URL.findall(text))


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
