"""What Prometheus can read: one prefix, seconds, one registry per service object.

Each stage is timed once, where it runs, and that one number feeds the histogram here, the
`Server-Timing` header and through it the load report. Labels are bounded: never a user, item or path
that a caller chose.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import accumulate
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from service.arm_metrics import ArmFamilies
from service.caller_metrics import CallerFamilies

PREFIX = "t2diff"
STAGES = ("store", "queue", "tower", "search", "total")
BUCKETS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTENT_TYPE = CONTENT_TYPE_LATEST
disable_created_metrics()  # a second series for each of ours, which nobody reads
_BREAKER_STATES = ("closed", "half-opened", "opened")


class Metrics:
    """Every metric of the service."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        self._stages = {name: _Stage() for name in STAGES}
        registry.register(_StageCollector(self._stages))
        self._responses = Counter(
            f"{PREFIX}_responses_total", "Answered HTTP requests.", ["route", "status"], registry=registry
        )
        self._response_children: dict[tuple[str, int], Counter] = {}
        self._recalls = Counter(
            f"{PREFIX}_recalls_total",
            "Recalled users by what answered: the model's name or popular.",
            ["route"],
            registry=registry,
        )
        self._recall_children: dict[str, Counter] = {}
        self._fallbacks = Counter(
            f"{PREFIX}_fallbacks_total",
            "Users answered with the popular items, by reason.",
            ["reason", "degraded"],
            registry=registry,
        )
        self._fewer_steps = Counter(
            f"{PREFIX}_fewer_steps_total",
            "Users answered with fewer diffusion steps than set, by their number.",
            ["steps"],
            registry=registry,
        )
        self._shortfalls = Counter(
            f"{PREFIX}_shortfalls_total", "Answers with fewer than top_k candidates.", registry=registry
        )
        device_cpu = Counter(
            f"{PREFIX}_device_cpu_seconds_total",
            "Processor time of the device thread in tower and search; with several threads only its own.",
            ["stage"],
            registry=registry,
        )
        self._tower_cpu, self._search_cpu = device_cpu.labels("tower"), device_cpu.labels("search")
        self._batch_size = Histogram(
            f"{PREFIX}_batch_size", "Requests that shared a batch.", buckets=BATCH_BUCKETS, registry=registry
        )
        self.queue_depth = Gauge(
            f"{PREFIX}_queue_depth", "Requests that wait for the device.", registry=registry
        )
        self.in_flight = Gauge(
            f"{PREFIX}_in_flight", "Users who are being recalled at this moment.", registry=registry
        )
        self.degradation_level = Gauge(
            f"{PREFIX}_degradation_level", "Of soft degradation: 0 is none.", registry=registry
        )
        self._out_of_memory = Counter(
            f"{PREFIX}_out_of_memory_total",
            "Batches that did not fit the device's memory and were halved.",
            registry=registry,
        )
        self._batch_limit = Gauge(
            f"{PREFIX}_batch_limit", "Largest batch since memory ran out; 0: as set.", registry=registry
        )
        self.device_busy = Gauge(
            f"{PREFIX}_device_busy_seconds", "How long the present batch has been running.", registry=registry
        )
        self._breaker = Gauge(
            f"{PREFIX}_redis_breaker_state",
            "1 for the state that the Redis circuit breaker is in.",
            ["operation", "state"],
            registry=registry,
        )
        self._store_errors = Counter(
            f"{PREFIX}_store_errors_total",
            "Failed Redis operations.",
            ["operation", "reason"],
            registry=registry,
        )
        self.events = Counter(
            f"{PREFIX}_events_total", "Events stored in users' sequences.", registry=registry
        )
        self._spans = Counter(
            f"{PREFIX}_spans_total", "Spans by what became of them.", ["outcome"], registry=registry
        )
        self._bundle = Gauge(
            f"{PREFIX}_bundle_info",
            "1 for the bundle that is being served.",
            ["bundle", "model", "index", "device", "tower_engine"],
            registry=registry,
        )
        self._bundle_created = Gauge(
            f"{PREFIX}_bundle_created_seconds",
            "When the bundle that is being served was built, Unix time.",
            registry=registry,
        )
        self._reloads = Counter(
            f"{PREFIX}_reloads_total", "Bundle reloads by outcome.", ["outcome"], registry=registry
        )
        self._delta_items = Gauge(
            f"{PREFIX}_delta_items", "New items that are recalled beside the bundle's.", registry=registry
        )
        self._tombstones = Gauge(
            f"{PREFIX}_tombstones", "Deleted items that are never recalled.", registry=registry
        )
        self.delta_age = Gauge(
            f"{PREFIX}_delta_age_seconds",
            "Time since the store was last seen to hold the new and deleted items in use.",
            registry=registry,
        )
        self._delta_loads = Counter(
            f"{PREFIX}_delta_loads_total",
            "Changes of the store's new and deleted items by outcome.",
            ["outcome"],
            registry=registry,
        )
        self.ready = Gauge(f"{PREFIX}_ready", "1 when requests are welcome.", registry=registry)
        self.arms = ArmFamilies(registry, PREFIX, BUCKETS_S)
        self.callers = CallerFamilies(registry, PREFIX)
        for operation in ("read", "write"):
            self.set_breaker(operation, "closed")
        for outcome in ("loaded", "refused"):
            self._reloads.labels(outcome)
            self._delta_loads.labels(outcome)

    def observe_stage(self, stage: str, seconds: float) -> None:
        """One measured stage of one request."""
        self._stages[stage].observe(seconds)

    def observe_batch(self, answer: Any) -> None:
        """One batch of the device, from any of its answers (`engine.EngineAnswer`)."""
        self._batch_size.observe(answer.batch_size)
        self._stages["tower"].observe(answer.tower_seconds)
        self._stages["search"].observe(answer.search_seconds)
        self._tower_cpu.inc(answer.tower_cpu_seconds)
        self._search_cpu.inc(answer.search_cpu_seconds)

    def count_response(self, route: str, status: int) -> None:
        """One HTTP response. `route` is a template, never a path."""
        child = self._response_children.get((route, status))
        if child is None:
            child = self._response_children[route, status] = self._responses.labels(route, str(status))
        child.inc()

    def count_recall(self, route: str, *, fallback_reason: str | None, degraded: bool, short: bool) -> None:
        """One recalled user."""
        child = self._recall_children.get(route)
        if child is None:
            child = self._recall_children[route] = self._recalls.labels(route)
        child.inc()
        if fallback_reason is not None:
            self._fallbacks.labels(fallback_reason, str(degraded).lower()).inc()
        if short:
            self._shortfalls.inc()

    def count_fewer_steps(self, steps: int) -> None:
        """One user answered by soft degradation."""
        self._fewer_steps.labels(str(steps)).inc()

    def set_batch_limit(self, limit: int, ran_out: bool) -> None:
        """The largest batch from now on, 0 for as set.   ran_out: because one did not fit"""
        self._batch_limit.set(limit)
        if ran_out:
            self._out_of_memory.inc()

    def count_store_error(self, operation: str, reason: str) -> None:
        """One failed read or write."""
        self._store_errors.labels(operation, reason).inc()

    def count_spans(self, outcome: str, number: int) -> None:
        """outcome: exported, failed, or dropped because too many waited; called by another thread too"""
        self._spans.labels(outcome).inc(number)

    def count_reload(self, outcome: str) -> None:
        """`loaded` or `refused`."""
        self._reloads.labels(outcome).inc()

    def count_delta_load(self, outcome: str) -> None:
        """`loaded` or `refused`."""
        self._delta_loads.labels(outcome).inc()

    def set_delta(self, items: int, deleted: int) -> None:
        """What is recalled, and what is not, beside the bundle from now on."""
        self._delta_items.set(items)
        self._tombstones.set(deleted)

    def set_breaker(self, operation: str, state: str) -> None:
        """The breaker of reads or writes changed."""
        for known in _BREAKER_STATES:
            self._breaker.labels(operation, known).set(1 if known == state else 0)

    def set_bundle(self, labels: Mapping[str, str], created: str) -> None:
        """What is served from now on: bundle, model, index, device, tower_engine.

        created: as its manifest says it, ISO 8601
        """
        self._bundle_created.set(datetime.fromisoformat(created).timestamp())
        self._bundle.clear()
        self._bundle.labels(**labels).set(1)

    def exposition(self) -> bytes:
        """The text that /metrics answers with."""
        return generate_latest(self.registry)


class _Stage:
    """A histogram with one writer, hence without a lock: each stage is timed on one thread only.

    Five of them a request cost a tenth of the library's, which searches its buckets in Python under a lock.
    """

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)  # not cumulative; the last one is beyond every bound
        self.seconds = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.seconds += seconds


class _StageCollector(Collector):
    def __init__(self, stages: Mapping[str, _Stage]) -> None:
        self._stages = stages

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(
            f"{PREFIX}_stage_seconds",
            "Time of one stage of a request; tower and search are those of the whole batch.",
            labels=["stage"],
        )
        bounds = [*map(floatToGoString, BUCKETS_S), "+Inf"]
        for name, stage in self._stages.items():
            buckets = list(zip(bounds, accumulate(stage.counts), strict=True))
            family.add_metric([name], buckets=buckets, sum_value=stage.seconds)
        yield family
