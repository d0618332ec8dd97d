"""How long a request may still take: one absolute time, carried from the socket to the device."""

from __future__ import annotations

import time
from typing import NamedTuple

MAX_DEADLINE_MS = 600_000


class Deadline(NamedTuple):
    """`at` is on the clock of `time.monotonic` (the event loop's clock as well), in seconds."""

    at: float

    @classmethod
    def after_ms(cls, milliseconds: float, *, start: float) -> Deadline:
        """`milliseconds` after `start`, which is when the request arrived."""
        return cls(start + milliseconds / 1000)

    @property
    def expired(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return time.monotonic() >= self.at
