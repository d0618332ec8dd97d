"""Times on a GPU: things compared take turns, each turn long enough to measure, medians over the rounds.

Events on the stream are the clock: what the host is late with counts, what it does beside does not.
"""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch

Call = Callable[[], object]
_MS_OF_A_TURN = 20.0  # short calls are repeated for so long
_MAX_CALLS = 200


class Clock(ABC):
    """Measures a stretch of calls."""

    @abstractmethod
    def milliseconds(self, call: Call, count: int) -> float:
        """Of `count` calls, until the last one's work is done."""


class EventClock(Clock):
    """CUDA events on the current stream. Not run: no GPU was at hand when this was written."""

    def milliseconds(self, call: Call, count: int) -> float:
        """As Clock.milliseconds."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        for _ in range(count):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)


class HostClock(Clock):
    """The host's own clock, for calls that are done when they return."""

    def milliseconds(self, call: Call, count: int) -> float:
        """As Clock.milliseconds."""
        began = time.perf_counter()
        for _ in range(count):
            call()
        return 1_000 * (time.perf_counter() - began)


def medians(calls: Mapping[str, Call], clock: Clock, *, rounds: int) -> dict[str, float]:
    """Milliseconds a call, by name. The first call of each is not counted."""
    counts = {}
    for name, call in calls.items():
        call()
        once = max(clock.milliseconds(call, 1), 1e-3)
        counts[name] = max(1, min(_MAX_CALLS, round(_MS_OF_A_TURN / once)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(clock.milliseconds(call, counts[name]) / counts[name])
    return {name: statistics.median(measured) for name, measured in times.items()}
