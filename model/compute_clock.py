"""The clock by which computing is timed."""

from __future__ import annotations

import time
from collections.abc import Callable


def compute_clock(device: str) -> Callable[[], float]:
    """Seconds: on a CPU this process's processor time, which a busy neighbour disturbs less; else the wall's.

    On a GPU the caller waits for the device before it reads the clock. Threads add up on a CPU.
    """
    return time.perf_counter if device.startswith("cuda") else time.process_time
