"""The metrics of an experiment's arms. Labels come from the settings only, and go when the arms change."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service.answer_overlap import Agreement

STAGES = ("queue", "tower", "search")
DROPPED = ("full", "late", "failed")
SHARE_BUCKETS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
SHIFT_WINDOW = 1000
"""Comparisons over which the score shift is averaged: a mean with a sign is no counter."""

_LABELS = ["experiment", "arm"]


class ArmFamilies:
    """The families; without an experiment they have no series."""

    def __init__(self, registry: CollectorRegistry, prefix: str, buckets_s: Sequence[float]) -> None:
        self._info = Gauge(
            f"{prefix}_experiment_info",
            "1 for each arm of the running experiment.",
            [*_LABELS, "bundle", "shadow"],
            registry=registry,
        )
        self.recalls = Counter(
            f"{prefix}_arm_recalls_total",
            "Users recalled by an arm: by its share, by the debugging header, or as a shadow.",
            [*_LABELS, "by"],
            registry=registry,
        )
        self.fallbacks = Counter(
            f"{prefix}_arm_fallbacks_total",
            "Requests that an arm's model did not answer, by reason.",
            [*_LABELS, "reason"],
            registry=registry,
        )
        self.stages = Histogram(
            f"{prefix}_arm_stage_seconds",
            "Time of queue, tower and search of an arm's requests; tower and search: the whole batch.",
            [*_LABELS, "stage"],
            buckets=buckets_s,
            registry=registry,
        )
        self.overlap = Histogram(
            f"{prefix}_arm_overlap",
            "Share of the candidates that an arm's answer has in common with the control's.",
            _LABELS,
            buckets=SHARE_BUCKETS,
            registry=registry,
        )
        self.rank_biased = Histogram(
            f"{prefix}_arm_rank_biased_overlap",
            "The same with the upper places counting more (p = 0.9).",
            _LABELS,
            buckets=SHARE_BUCKETS,
            registry=registry,
        )
        self.shift = Gauge(
            f"{prefix}_arm_score_shift",
            "Mean score minus the control's on the same requests, over the last 1000 compared.",
            _LABELS,
            registry=registry,
        )
        self.dropped = Counter(
            f"{prefix}_arm_comparisons_dropped_total",
            "Comparisons given up: too many waited, the device had no time, or the model failed.",
            [*_LABELS, "reason"],
            registry=registry,
        )

    def show(self, experiment: str, arms: Sequence[tuple[str, str, bool]]) -> None:
        """What runs now: (arm, bundle, shadow) of each."""
        self._info.clear()
        for arm, bundle, shadow in arms:
            self._info.labels(experiment, arm, bundle, str(shadow).lower()).set(1)

    def clear(self) -> None:
        """Forget every arm: another experiment, or none, runs from now on."""
        for family in (
            self._info,
            self.recalls,
            self.fallbacks,
            self.stages,
            self.overlap,
            self.rank_biased,
            self.shift,
            self.dropped,
        ):
            family.clear()


class ArmMetrics:
    """The series of one arm, looked up once."""

    def __init__(self, families: ArmFamilies, experiment: str, arm: str) -> None:
        self._fallbacks = families.fallbacks
        self._labels = (experiment, arm)
        self._by = {by: families.recalls.labels(*self._labels, by) for by in ("share", "header", "shadow")}
        self._stages = {stage: families.stages.labels(*self._labels, stage) for stage in STAGES}
        self._dropped = {reason: families.dropped.labels(*self._labels, reason) for reason in DROPPED}
        self._overlap = families.overlap.labels(*self._labels)
        self._rank_biased = families.rank_biased.labels(*self._labels)
        self._shifts: deque[float] = deque(maxlen=SHIFT_WINDOW)
        families.shift.labels(*self._labels).set_function(self._mean_shift)

    def count_recall(self, by: str, *, timings: Mapping[str, float], fallback_reason: str | None) -> None:
        """One request.   by: share, header or shadow   timings: stage -> seconds"""
        self._by[by].inc()
        for stage, histogram in self._stages.items():
            if stage in timings:
                histogram.observe(timings[stage])
        if fallback_reason is not None:
            self._fallbacks.labels(*self._labels, fallback_reason).inc()

    def count_dropped(self, reason: str) -> None:
        """One comparison that was given up."""
        self._dropped[reason].inc()

    def observe(self, agreement: Agreement) -> None:
        """One comparison with the control."""
        self._overlap.observe(agreement.overlap)
        self._rank_biased.observe(agreement.rank_biased)
        self._shifts.append(agreement.score_shift)

    def _mean_shift(self) -> float:
        shifts = list(self._shifts)
        return sum(shifts) / len(shifts) if shifts else 0.0
