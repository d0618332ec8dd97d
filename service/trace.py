"""What is recorded of one traced request, for whoever adds to it; who sends it away is `tracing.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol
from urllib.parse import urlsplit


class Timings(dict[str, float]):
    """Stage -> seconds, in the order in which they are shown.

    starts: stage -> `time.monotonic` seconds; there from the first stage on, for most requests have none
    """

    __slots__ = ("starts",)
    starts: dict[str, float]

    def note(self, stage: str, started: float, seconds: float) -> None:
        """A stage is over. Tower and search are those of the whole batch."""
        if not self:
            self.starts = {}
        self.starts[stage] = started
        self[stage] = seconds


class Trace(Protocol):
    """One request. Times are `time.monotonic` seconds."""

    trace_id: str | None
    """32 hexadecimal digits, for log lines; None where the request belongs to no trace."""

    def stage(
        self, name: str, started: float, ended: float, attributes: Mapping[str, str | int] | None = None
    ) -> None:
        """A part of it."""

    def end(self, ended: float, status: int | None, attributes: Mapping[str, str | int | None]) -> None:
        """It is over.   status: of the answer, None where none was sent   attributes: None is left out"""


def check_collector(url: str) -> str:
    """Raises ValueError, with the remedy and without the URL, which may hold a password."""
    parts = urlsplit(url)
    try:
        reachable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        reachable = False
    if parts.scheme not in ("http", "https") or not reachable:
        raise ValueError("must be an http:// or https:// URL with a host, such as http://collector:4318")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(
            "must have no user, password or query: OTEL_EXPORTER_OTLP_HEADERS takes what is secret"
        )
    return url


BeginTrace = Callable[[str, Iterable[tuple[bytes, bytes]], float], Trace]
"""(what is asked, headers, when it began) -> its trace"""
