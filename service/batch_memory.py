"""The largest batch that fits the device's memory, once it has run out of it.

After an out-of-memory error the batch is tried again in halves, and no batch is larger than the half that
fitted for RETRY_AFTER_S; then twice as much is tried, until the size that failed first has fitted. So memory
that somebody else took for a while costs throughput for a while, and no request.
"""

from __future__ import annotations

import time
from collections.abc import Callable

RETRY_AFTER_S = 30.0


class BatchMemory:
    """Belongs to the device thread."""

    def __init__(
        self,
        *,
        on_limit: Callable[[int, bool], None] = lambda limit, ran_out: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """on_limit: gets the new limit, 0 for none, and whether memory ran out, whenever either is news"""
        self.limit: int | None = None
        self._failed = 0  # the largest size that did not fit
        self._since = 0.0
        self._on_limit = on_limit
        self._clock = clock

    def largest(self, wanted: int) -> int:
        """How many of `wanted` requests may share a batch now."""
        if self.limit is not None and self._clock() - self._since >= RETRY_AFTER_S:
            raised = 2 * self.limit
            self._set(None if raised > self._failed else raised, ran_out=False)
        return wanted if self.limit is None else min(wanted, self.limit)

    def did_not_fit(self, size: int) -> None:
        """A batch of `size` ran out of memory."""
        self._failed = max(size, self._failed if self.limit is not None else 0)
        self._set(max(1, size // 2), ran_out=True)

    def _set(self, limit: int | None, *, ran_out: bool) -> None:
        self.limit = limit
        self._since = self._clock()
        self._on_limit(limit or 0, ran_out)
