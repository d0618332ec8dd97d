"""A TCP proxy that delays, swallows or refuses on request, and counts the connections that it was asked for.

It runs on a thread with a loop of its own, so that it goes on while the caller's loop is busy.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import threading
from dataclasses import dataclass
from types import TracebackType

_CHUNK = 65_536


@dataclass(frozen=True)
class Fault:
    """delay_s: by which each piece of a reply is held back   drop_share: of the pieces, both ways, swallowed

    refuse: connections are cut and new ones closed at once
    """

    delay_s: float = 0.0
    drop_share: float = 0.0
    refuse: bool = False


NONE = Fault()


class FaultyProxy:
    """`with FaultyProxy(to_port) as proxy: proxy.port; proxy.fault = Fault(delay_s=0.1)`"""

    def __init__(self, to_port: int, *, tls: ssl.SSLContext | None = None, seed: int = 0) -> None:
        """tls: what the proxy shows to its clients; without it they are not encrypted"""
        self.num_connections = 0
        self.port = 0
        self._to_port = to_port
        self._tls = tls
        self._random = random.Random(seed)
        self._fault = NONE
        self._writers: set[asyncio.StreamWriter] = set()
        self._started = threading.Event()

    @property
    def fault(self) -> Fault:
        """What is wrong at present."""
        return self._fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        self._fault = fault
        if fault.refuse:
            self._loop.call_soon_threadsafe(self._cut)

    def __enter__(self) -> FaultyProxy:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        self._started.wait(10)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._end.wait()
        server.close()
        self._cut()

    def _cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        self._writers.add(writer)
        upstream: asyncio.StreamWriter | None = None
        try:
            if self._fault.refuse:
                return
            replies, upstream = await asyncio.open_connection("127.0.0.1", self._to_port)
            self._writers.add(upstream)
            there = asyncio.create_task(self._pass_on(reader, upstream, reply=False))
            back = asyncio.create_task(self._pass_on(replies, writer, reply=True))
            await asyncio.wait([there, back], return_when=asyncio.FIRST_COMPLETED)
            there.cancel()
            back.cancel()
        except OSError:
            pass  # nobody listens there: to the client, a connection that is closed at once
        finally:
            for each in (writer, upstream):
                if each is not None:
                    self._writers.discard(each)
                    each.close()

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, reply: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(_CHUNK):
                fault = self._fault
                if reply and fault.delay_s:
                    await asyncio.sleep(fault.delay_s)
                if self._random.random() >= fault.drop_share:
                    writer.write(piece)
                    await writer.drain()
