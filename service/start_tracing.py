"""Switches tracing on where a collector is named; while it is off nothing that makes spans is imported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from service.app import service_version
from service.metrics import Metrics
from service.settings import ServiceSettings, environment_variable_of, flag_of
from service.trace import BeginTrace


@contextmanager
def started_tracing(settings: ServiceSettings, metrics: Metrics) -> Iterator[BeginTrace | None]:
    """How the traces of requests begin, None while it is off; what waits at the end is sent.

    Raises ValueError where the extra is missing or the OTEL_ variables say what cannot be.
    """
    if settings.tracing_endpoint is None:
        yield None
        return
    where = f"tracing_endpoint ({flag_of('tracing_endpoint')}, {environment_variable_of('tracing_endpoint')})"
    try:
        from service.tracing import Tracing
    except ImportError as error:
        missing = f"{error.name} is not installed; pip install 't2diff-recall[tracing]'"
        raise ValueError(f"{where}: {missing}") from None
    try:
        tracing = Tracing(
            settings.tracing_endpoint,
            sample=settings.tracing_sample,
            service_name=settings.tracing_service_name,
            count=metrics.count_spans,
            version=service_version(),
        )
    except ValueError as error:
        raise ValueError(f"{where}: one of the OTEL_ variables is wrong: {error}") from None
    try:
        yield tracing.begin
    finally:
        tracing.close()
