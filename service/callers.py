"""Who asks: everybody whose key stands in the file, what they may do and how much of it they have done.

Decided from the headers alone, before a body is read and before Redis is asked. On the event loop only.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator

from service.api_keys import ApiKey, KeyRing, KnownKey
from service.errors import ForbiddenError, OverRateError, OverShareError, UnauthorizedError
from service.quotas import FairPlaces, Holder, TokenBucket

OUTCOMES = ("accepted", "over_rate", "over_share", "out_of_scope", "expired")
UNKNOWN = ("missing", "malformed", "unknown")
_SCHEME = b"bearer "

Headers = Iterable[tuple[bytes, bytes]]
Turn = Callable[[], contextlib.AbstractAsyncContextManager[None]]
"""Around the recall of one member of a batch. Raises OverShareError."""


class Caller(Holder):
    """One caller, whichever of its keys it uses.   outcomes: requests so far, by what became of them"""

    __slots__ = ("_places", "bucket", "name", "outcomes")

    def __init__(self, name: str, places: FairPlaces) -> None:
        super().__init__()
        self.name = name
        self.bucket: TokenBucket | None = None
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self._places = places

    def enter(self) -> None:
        """Begin a recall. Raises OverShareError; otherwise `leave` must follow."""
        if not self._places.enter(self):
            self.outcomes["over_share"] += 1
            raise OverShareError(self.held)

    def leave(self) -> None:
        """End a recall."""
        self._places.leave(self)

    def begin_batch(self, num_members: int) -> Turn:
        """Charge a batch, of which one request was when it was admitted; what gives its members their turn.

        A batch uses half of what the caller may still have, so that its other recalls get in; the members
        beyond that wait here, where they are in nobody's way.
        """
        if self.bucket is not None:
            self.bucket.charge(num_members - 1)
        turns = asyncio.Semaphore(max(1, self._places.left_for(self) // 2))

        @contextlib.asynccontextmanager
        async def turn() -> AsyncIterator[None]:
            async with turns:
                self.enter()
                try:
                    yield
                finally:
                    self.leave()

        return turn


class Callers:
    """The keys in use and the callers behind them.

    unknown: requests without a known key, by reason
    """

    def __init__(
        self,
        keys: Collection[ApiKey],
        *,
        num_places: int,
        places_now: Callable[[], float] = lambda: math.inf,
    ) -> None:
        """num_places: recalls that may be under way at once, of all callers together

        places_now: the same at this moment, where the service refuses earlier than that
        """
        self._places = FairPlaces(num_places, places_now=places_now)
        self._callers: dict[str, Caller] = {}
        self.unknown = dict.fromkeys(UNKNOWN, 0)
        self.use(keys)

    def __iter__(self) -> Iterator[Caller]:
        return iter(self._callers.values())

    def use(self, keys: Collection[ApiKey]) -> None:
        """Take these keys from now on; who is among the callers before and after keeps counts and places.

        A caller has one bucket however many keys it has, with the rate of the last in the file: two keys for
        a rotation are not twice the rate.
        """
        callers: dict[str, Caller] = {}
        now = time.monotonic()
        for name, key in {key.caller: key for key in keys}.items():
            caller = self._callers.get(name) or Caller(name, self._places)
            if key.rate is None:
                caller.bucket = None
            elif caller.bucket is None:
                caller.bucket = TokenBucket(key.rate, key.effective_burst, now=now)
            else:
                caller.bucket.change(key.rate, key.effective_burst, now=now)
            callers[name] = caller
        self._callers = callers
        self._ring = KeyRing(keys)
        self.num_keys = len(keys)

    def admit(self, headers: Headers, scopes: frozenset[str], *, now: float | None) -> Caller:
        """The caller, when its key has one of `scopes`.   now: monotonic seconds; None leaves the rate alone

        Raises UnauthorizedError, ForbiddenError or OverRateError.
        """
        key = self._key(headers)
        caller = self._callers[key.caller]
        if key.expires <= time.time():
            caller.outcomes["expired"] += 1
            raise UnauthorizedError("this key is over; ask for a new one", error="invalid_token")
        if scopes.isdisjoint(key.scopes):
            caller.outcomes["out_of_scope"] += 1
            raise ForbiddenError(scopes)
        if now is not None and caller.bucket is not None:
            wait_s = caller.bucket.take(now)
            if wait_s:
                caller.outcomes["over_rate"] += 1
                raise OverRateError(caller.bucket.rate, wait_s=wait_s)
        return caller

    def _key(self, headers: Headers) -> KnownKey:
        given: bytes | None = None
        for name, value in headers:
            if name == b"authorization":
                if given is not None:
                    raise self._malformed()
                given = value
        if given is None:
            self.unknown["missing"] += 1
            raise UnauthorizedError("this call needs a key; send the header Authorization: Bearer KEY")
        if given[: len(_SCHEME)].lower() != _SCHEME:
            raise self._malformed()
        key = self._ring.find(given[len(_SCHEME) :].strip())
        if key is None:
            self.unknown["unknown"] += 1
            raise UnauthorizedError("this key is not known; ask for one", error="invalid_token")
        return key

    def _malformed(self) -> UnauthorizedError:
        self.unknown["malformed"] += 1
        return UnauthorizedError("Authorization: send it once, as Bearer KEY", error="invalid_request")
