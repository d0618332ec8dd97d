"""Spans of requests by OpenTelemetry: W3C trace context in, OTLP over HTTP out. Imported only when it is on.

The spans of a request are made when it is over, from what was timed anyway. A thread of the library's own
sends them: its queue is bounded, and a collector that is slow or gone costs spans, counted and logged once in
a while, never a request. No span holds a user, an item, a key or a path that a caller made up.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

logger = logging.getLogger("t2diff.tracing")
UNNAMED = "t2diff-recall"
TRACES_PATH = "/v1/traces"
MAX_WAITING = 2048
"""Spans that wait for the collector; about 300 traced requests."""
CLOSE_S = 2.0
LOG_EVERY_S = 60.0
_HEADERS = (b"traceparent", b"tracestate")

CountSpans = Callable[[str, int], None]
"""(`exported`, `failed` or `dropped`, how many)"""


class Tracing:
    """Begins a trace of each request and sends away what was sampled."""

    def __init__(
        self, endpoint: str, *, sample: float, service_name: str | None, count: CountSpans, version: str
    ) -> None:
        """sample: share of the requests that come without a trace; those with one say themselves

        Raises ValueError where the library refuses what its own OTEL_ variables say.
        """
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # said once in a while, by us
        exporter = _CountingExporter(OTLPSpanExporter(endpoint=_traces_url(endpoint)), count)
        self._processor = _CountingProcessor(exporter, count)
        provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample)),
            resource=_resource(service_name, version),
            shutdown_on_exit=False,  # it would wait for half a minute
        )
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer("t2diff", version)

    def begin(self, asked: str, headers: Iterable[tuple[bytes, bytes]], started: float) -> RequestTrace:
        """The trace of one request, within that of its caller when `traceparent` names one."""
        return RequestTrace(self._tracer, asked, _parent(headers), started)

    def close(self) -> None:
        """Send what waits, for two seconds at most."""
        closing = threading.Thread(target=self._processor.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_S)


class RequestTrace:
    """A `service.trace.Trace`."""

    def __init__(self, tracer: Tracer, asked: str, parent: Context, started: float) -> None:
        self._tracer = tracer
        self._clock_ns = time.time_ns() - time.monotonic_ns()
        self._span = tracer.start_span(asked, parent, kind=SpanKind.SERVER, start_time=self._unix_ns(started))
        context = self._span.get_span_context()
        self.trace_id = f"{context.trace_id:032x}" if context.is_valid else None
        self._sampled = self._span.is_recording()
        self._within = set_span_in_context(self._span) if self._sampled else None

    def stage(
        self, name: str, started: float, ended: float, attributes: Mapping[str, str | int] | None = None
    ) -> None:
        """A part of the request."""
        if self._sampled:
            span = self._tracer.start_span(
                name, self._within, attributes=attributes, start_time=self._unix_ns(started)
            )
            span.end(self._unix_ns(ended))

    def end(self, ended: float, status: int | None, attributes: Mapping[str, str | int | None]) -> None:
        """The request is over."""
        if not self._sampled:
            return
        self._span.set_attributes({name: value for name, value in attributes.items() if value is not None})
        if status is not None:
            self._span.set_attribute("http.response.status_code", status)
            if status >= 500:
                self._span.set_status(Status(StatusCode.ERROR))
        self._span.end(self._unix_ns(ended))

    def _unix_ns(self, monotonic: float) -> int:
        return self._clock_ns + int(monotonic * 1e9)


class _CountingExporter(SpanExporter):
    """Says what became of the spans."""

    def __init__(self, exporter: SpanExporter, count: CountSpans) -> None:
        self._exporter = exporter
        self._count = count
        self._quiet_until = 0.0
        self.num_taken = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.num_taken += len(spans)
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self._count("exported", len(spans))
            return result
        self._count("failed", len(spans))
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + LOG_EVERY_S
            logger.warning("the collector of spans takes none; requests go on", extra={"spans": len(spans)})
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class _CountingProcessor(BatchSpanProcessor):
    """Counts what it drops when too much waits: the library does so without a word."""

    def __init__(self, exporter: _CountingExporter, count: CountSpans) -> None:
        super().__init__(exporter, max_queue_size=MAX_WAITING)
        self._counting = exporter
        self._count = count
        self._num_ended = 0

    def on_end(self, span: ReadableSpan) -> None:
        if self._num_ended - self._counting.num_taken >= MAX_WAITING:
            self._count("dropped", 1)
        else:
            self._num_ended += 1
        super().on_end(span)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        pass


def _parent(headers: Iterable[tuple[bytes, bytes]]) -> Context:
    """The caller's span; a `traceparent` that is malformed, or there twice, is none."""
    given: dict[str, list[str]] = {}
    for name, value in headers:
        if name in _HEADERS:
            given.setdefault(name.decode(), []).append(value.decode("latin-1"))
    if len(given.get("traceparent", ())) != 1:
        return Context()
    carrier = {name: ",".join(values) for name, values in given.items()}
    return TraceContextTextMapPropagator().extract(carrier, context=Context())


def _traces_url(endpoint: str) -> str:
    """A collector's address gets the path that OTLP has; one with a path is taken as it is."""
    scheme, _, rest = endpoint.partition("://")
    return endpoint if rest.partition("/")[2] else f"{scheme}://{rest.rstrip('/')}{TRACES_PATH}"


def _resource(service_name: str | None, version: str) -> Resource:
    """The setting over OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES over our own name."""
    ours = {"service.version": version, "service.instance.id": f"{socket.gethostname()}-{os.getpid()}"}
    if service_name is not None:
        ours[SERVICE_NAME] = service_name
    resource = Resource.create(ours)
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        return resource.merge(Resource({SERVICE_NAME: UNNAMED}))
    return resource
