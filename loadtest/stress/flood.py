"""More requests than a service can answer, sent at their times from a process that never sleeps.

It spins: on a machine whose processors are halves of one core, a generator that idles at the knee and is busy
at ten times the knee would take speed from the service only in the second case.
"""

from __future__ import annotations

import gc
import select
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.stress.own_process import in_own_process
from loadtest.stress.raw_connection import RawConnection, Reply

NOT_SENT, NOT_ANSWERED, ENDED = 0, -1, -2
"""In `status`, beside HTTP's: no connection was free, no answer in time, the connection was closed."""


@dataclass(frozen=True)
class Flood:
    """offsets_s: (n,) when to send, from the start   requests: sent in turn, as bytes

    patience_s: after the last one, how long answers are waited for
    """

    url: str
    offsets_s: np.ndarray
    requests: Sequence[bytes]
    num_connections: int
    patience_s: float
    cpu: int | None


@dataclass(frozen=True)
class Flooded:
    """What became of each; times from the start in seconds, NaN where there is none.

    good: answered 200, and not degraded   at_start: `time.monotonic` of the start
    """

    intended: np.ndarray
    sent: np.ndarray
    ended: np.ndarray
    status: np.ndarray
    good: np.ndarray
    at_start: float

    @property
    def latency_ms(self) -> np.ndarray:
        """From the intended send to the whole answer."""
        return (self.ended - self.intended) * 1000


def run_flood(flood: Flood, meanwhile: Callable[[], None] = lambda: None) -> Flooded:
    """In a process of its own.   meanwhile: called every 50 ms"""
    return in_own_process(send_flood, flood, cpu=flood.cpu, meanwhile=meanwhile)


def send_flood(flood: Flood) -> Flooded:
    """Process entry."""
    gc.disable()
    return _Flooding(flood).run()


class _Flooding:
    def __init__(self, flood: Flood) -> None:
        n = len(flood.offsets_s)
        self.flood = flood
        self.sent, self.ended = np.full(n, np.nan), np.full(n, np.nan)
        self.status = np.full(n, NOT_SENT, np.int16)
        self.good = np.zeros(n, bool)
        self.connections = [RawConnection(flood.url) for _ in range(flood.num_connections)]
        self.free = deque(self.connections)
        self.busy: dict[int, tuple[RawConnection, int]] = {}  # descriptor -> connection, request
        self.poll = select.epoll()
        for connection in self.connections:
            self.poll.register(connection.socket, select.EPOLLIN)

    def run(self) -> Flooded:
        flood = self.flood
        offsets = flood.offsets_s.tolist()
        start = time.monotonic() + 0.2
        give_up = (offsets[-1] if offsets else 0.0) + flood.patience_s
        number, n = 0, len(offsets)
        while True:
            now = time.monotonic() - start
            while number < n and offsets[number] <= now and self.free:
                self._send(number, now)
                number += 1
            for descriptor, _ in self.poll.poll(0):
                self._receive(descriptor, start)
            if now > give_up or (number == n and not self.busy):
                break
        for connection in self.connections:
            connection.close()
        return Flooded(flood.offsets_s, self.sent, self.ended, self.status, self.good, start)

    def _send(self, number: int, now: float) -> None:
        connection = self.free.popleft()
        self.sent[number] = now
        self.status[number] = NOT_ANSWERED
        self.busy[connection.socket.fileno()] = connection, number
        try:
            connection.send(self.flood.requests[number % len(self.flood.requests)])
        except OSError:
            self._renew(connection, number)

    def _receive(self, descriptor: int, start: float) -> None:
        under_way = self.busy.get(descriptor)
        if under_way is None:  # an idle connection was closed
            connection = next(c for c in self.connections if c.socket.fileno() == descriptor)
            self.free.remove(connection)
            self._renew(connection, None)
            return
        connection, number = under_way
        try:
            reply = connection.receive()
        except OSError:
            self._renew(connection, number)
            return
        if reply is None:
            return
        self.ended[number] = time.monotonic() - start
        self.status[number] = reply.status
        self.good[number] = reply.status == 200 and not is_degraded(reply)
        if reply.closes:
            self._renew(connection, None)
        else:
            del self.busy[descriptor]
            self.free.append(connection)

    def _renew(self, connection: RawConnection, number: int | None) -> None:
        if number is not None:
            self.status[number] = ENDED
        self.busy.pop(connection.socket.fileno(), None)
        self.poll.unregister(connection.socket)
        connection.renew()
        self.poll.register(connection.socket, select.EPOLLIN)
        self.free.append(connection)


def is_degraded(reply: Reply) -> bool:
    """Whether an answer says so; it does before its candidates."""
    return reply.body.find(b'"degraded":true', 0, 1000) >= 0
