"""Spans that find no room, without a service around them; the rest is in end_to_end/test_tracing.py."""

from __future__ import annotations

import socket
import time
from collections import Counter
from contextlib import closing

import pytest

pytest.importorskip("opentelemetry.sdk.trace")

from service.tracing import MAX_WAITING, Tracing


def test_more_spans_than_may_wait_are_dropped_and_counted_and_the_end_does_not_wait_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("service.tracing.CLOSE_S", 0.2)
    counted: Counter[str] = Counter()
    with closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        tracing = Tracing(
            f"http://127.0.0.1:{silent.getsockname()[1]}",
            sample=1,
            service_name=None,
            count=lambda outcome, number: counted.update({outcome: number}),
            version="0",
        )
        for _ in range(2 * MAX_WAITING):
            trace = tracing.begin("POST recall", [], time.monotonic())
            trace.end(time.monotonic(), 200, {})
        taken_at_most = 512
        assert MAX_WAITING - taken_at_most <= counted["dropped"] <= MAX_WAITING
        tracing.close()
        assert counted["exported"] == 0
