"""How many users are being recalled at this moment, and whether one more is welcome.

Counted is what has arrived whole, from then until its answer is made: an idle connection or a body that
dribbles in takes no place. Full means as many as the settings allow, or so many that the next one would wait
for half of the default deadline, by the time that batches have lately taken. Who comes then is refused (429)
at once, instead of being answered late.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from service.errors import QueueFullError

WAIT_SHARE = 0.5
"""Of the default deadline: the rest is for the store, its own batch, its answer, and what was misjudged."""


class InFlight:
    """Belongs to the event loop. Enter it for as long as one user is being recalled."""

    def __init__(
        self, limit: int, *, deadline_s: float, expected_wait_s: Callable[[int], float] = lambda ahead: 0.0
    ) -> None:
        """expected_wait_s: how long a request waits for the device when so many came before it"""
        self.limit = limit
        self.count = 0
        self.arriving = 0  # read from their connections in this turn of the loop, and not begun yet
        self._longest_wait_s = WAIT_SHARE * deadline_s
        self._expected_wait_s = expected_wait_s

    @property
    def full(self) -> bool:
        """Whether a request that begins now is refused."""
        return self._full(self.count)

    @property
    def full_for_arrivals(self) -> bool:
        """Whether one will be that is being read now: those read before it in the same turn go first."""
        return self._full(self.count + self.arriving)

    @property
    def pressure(self) -> float:
        """How near a request is to being refused: 0 when nobody is there, 1 when it is."""
        return max(self.count / self.limit, self._expected_wait_s(self.count) / self._longest_wait_s)

    @property
    def places_now(self) -> float:
        """At how many it will be full if requests go on taking as long as they do."""
        pressure = self.pressure
        return self.count / pressure if pressure > 0 else math.inf

    def check(self) -> None:
        """Raises QueueFullError when full."""
        if self.full:
            raise QueueFullError(self.limit)

    def _full(self, count: int) -> bool:
        return count >= self.limit or self._expected_wait_s(count) >= self._longest_wait_s

    def __enter__(self) -> InFlight:
        """Raises QueueFullError when full."""
        self.check()
        self.count += 1
        return self

    def __exit__(self, *error: object) -> None:
        self.count -= 1
