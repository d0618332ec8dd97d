"""The metrics of callers: plain counts of the event loop, read when somebody asks for them.

The only labels are names that stand in the file of keys, and they go when they leave it.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.callers import Callers

LOADS = ("loaded", "refused")


class CallerFamilies(Collector):
    """The families; without keys they have no series.

    callers: whose counts to show   loads: of the file of keys, by outcome
    """

    def __init__(self, registry: CollectorRegistry, prefix: str) -> None:
        self._prefix = prefix
        self.callers: Callers | None = None
        self.loads = dict.fromkeys(LOADS, 0)
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """What Prometheus reads."""
        requests = CounterMetricFamily(
            f"{self._prefix}_caller_requests",
            "Requests with a known key by what became of them at the door.",
            labels=["caller", "outcome"],
        )
        in_flight = GaugeMetricFamily(
            f"{self._prefix}_caller_in_flight", "Recalls of a caller that are under way.", labels=["caller"]
        )
        unknown = CounterMetricFamily(
            f"{self._prefix}_unknown_callers",
            "Requests refused because they came without a known key.",
            labels=["reason"],
        )
        loads = CounterMetricFamily(
            f"{self._prefix}_key_loads", "Changes of the file of API keys by outcome.", labels=["outcome"]
        )
        if self.callers is not None:
            for caller in self.callers:
                in_flight.add_metric([caller.name], caller.held)
                for outcome, count in caller.outcomes.items():
                    requests.add_metric([caller.name, outcome], count)
            for reason, count in self.callers.unknown.items():
                unknown.add_metric([reason], count)
            for outcome, count in self.loads.items():
                loads.add_metric([outcome], count)
        yield from (requests, in_flight, unknown, loads)
