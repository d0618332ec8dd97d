"""May this caller have one more? How often (a token bucket), and how many at once (a share of the places).

The library `limits` has no token bucket, awaits every question, and answers how long to wait by a second one;
these few lines answer both in half a microsecond.
"""

from __future__ import annotations

import math
from collections.abc import Callable


class TokenBucket:
    """`rate` tokens a second, at most `burst` of them; a request takes one."""

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float, *, now: float) -> None:
        """rate: tokens/s   burst: tokens   now: seconds, of any clock that only goes on"""
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._at = now

    def take(self, now: float) -> float:
        """Take a token; 0.0, or the seconds until there is one."""
        self._refill(now)
        if self._tokens < 1.0:
            return (1.0 - self._tokens) / self.rate
        self._tokens -= 1.0
        return 0.0

    def charge(self, tokens: float) -> None:
        """Take what turned out later to be needed; what is missing, the next requests wait for."""
        self._tokens -= tokens

    def change(self, rate: float, burst: float, *, now: float) -> None:
        """Another quota from now on; what is there stays, up to the new burst."""
        self._refill(now)
        self.rate, self.burst = rate, burst
        self._tokens = min(self._tokens, burst)

    def _refill(self, now: float) -> None:
        self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
        self._at = now


class Holder:
    """Who holds places.   held: how many now"""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = 0


class FairPlaces:
    """A place is given while its holder has fewer than are free.

    So one holder alone gets half of them, and n that keep asking get 1 / (n + 1) each; as many stay free for
    one who comes later, without anything being reserved for anybody. That are the dynamic thresholds of
    Choudhury and Hahne (1998), for queues that share a switch's memory, with their α = 1. With more holders
    than places somebody has to wait, whatever the rule.
    """

    def __init__(self, num_places: int, *, places_now: Callable[[], float] = lambda: math.inf) -> None:
        """places_now: how many there are at this moment, when that can be fewer"""
        self._num_places = num_places
        self._places_now = places_now
        self.taken = 0

    @property
    def free(self) -> float:
        """Places that nobody holds."""
        return min(self._num_places, self._places_now()) - self.taken

    def enter(self, holder: Holder) -> bool:
        """Take a place; False when the holder has its share."""
        if holder.held >= self.free:
            return False
        holder.held += 1
        self.taken += 1
        return True

    def left_for(self, holder: Holder) -> int:
        """How many more it could take now, if nobody else did."""
        return max(0, int(self.free - holder.held + 1) // 2)

    def leave(self, holder: Holder) -> None:
        """Give a place back."""
        holder.held -= 1
        self.taken -= 1
