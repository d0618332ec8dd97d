"""What another arm would have answered: asked after the answer is on its way, compared, never returned.

Nothing here can delay the request that it began with. The device does such work one computation at a time
and only while no request waits for it; what waits is bounded in number and in time, and what is given up
is counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from typing import Any

from service.answer_overlap import agreement
from service.arm_metrics import ArmMetrics
from service.batcher import MAX_IDLE_QUEUE, Batched
from service.candidate_list import CandidateList
from service.deadline import Deadline
from service.engine import Engine, EngineAnswer
from service.errors import DeadlineExceededError, EngineFailedError, QueueFullError, ShuttingDownError

PATIENCE_S = 2.0
"""Later than this a comparison says little: the requests of a busy time go before it."""

Ask = Callable[[Engine, Deadline], Coroutine[Any, Any, Batched[EngineAnswer] | None]]
"""Puts the same request to another engine when the device is idle; None: it knows none of its items."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer that was returned, and how to ask the same of another engine."""

    candidates: CandidateList
    ask: Ask


@dataclass(frozen=True, slots=True)
class Comparison:
    """One more engine to ask.

    metrics: of the arm that is compared with the control   asks_control: the arm answered, the control is
    asked; otherwise the control answered and the arm, a shadow, is asked
    """

    engine: Engine
    metrics: ArmMetrics
    asks_control: bool


class Comparisons:
    """Those under way. Belongs to the event loop."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def begin(self, comparisons: Collection[Comparison], answered: Answered) -> None:
        """Make each of them in the background, or drop and count it when too many wait already."""
        for comparison in comparisons:
            if len(self._running) >= MAX_IDLE_QUEUE:
                comparison.metrics.count_dropped("full")
                continue
            task = asyncio.get_running_loop().create_task(_compare(comparison, answered))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def close(self) -> None:
        """Give up what is under way."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)


async def _compare(comparison: Comparison, answered: Answered) -> None:
    metrics = comparison.metrics
    try:
        batched = await answered.ask(comparison.engine, Deadline(time.monotonic() + PATIENCE_S))
    except (DeadlineExceededError, QueueFullError) as error:
        metrics.count_dropped("late" if isinstance(error, DeadlineExceededError) else "full")
        return
    except EngineFailedError as error:
        metrics.count_dropped("failed")
        if not comparison.asks_control:
            metrics.count_recall("shadow", timings={}, fallback_reason=error.reason)
        return
    except ShuttingDownError:
        return
    if not comparison.asks_control:
        _count_shadow(metrics, batched)
    if batched is None:
        return
    answers = answered.candidates, batched.answer.candidates
    ours, theirs = answers if comparison.asks_control else reversed(answers)
    measured = agreement(ours.item_ids, ours.scores, theirs.item_ids, theirs.scores)
    if measured is not None:
        metrics.observe(measured)


def _count_shadow(metrics: ArmMetrics, batched: Batched[EngineAnswer] | None) -> None:
    if batched is None:
        metrics.count_recall("shadow", timings={}, fallback_reason="unknown_items")
        return
    stages = {
        "queue": batched.queue_seconds,
        "tower": batched.answer.tower_seconds,
        "search": batched.answer.search_seconds,
    }
    metrics.count_recall("shadow", timings=stages, fallback_reason=None)
