"""`python -m loadtest.stress.ready_proxy PORT SERVICE_PORT …`: the smallest HTTP proxy that heeds readiness.

Each service is asked for /v2/health/ready; requests go to the ready ones in turn, and nothing is ever sent
twice, so that what a restart breaks is seen by the client.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys

import aiohttp
from aiohttp import web

CHECK_S = 0.1
_CHECK_TIMEOUT = aiohttp.ClientTimeout(total=1.0)


class ReadyProxy:
    """ports: of the services, all on this machine"""

    def __init__(self, ports: list[int]) -> None:
        self._ready = dict.fromkeys(ports, False)
        self._turns = itertools.count()

    async def serve(self, port: int) -> None:
        """Answer on `port` for ever."""
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(connector=connector, auto_decompress=False) as self._session,
            asyncio.TaskGroup() as checks,
        ):
            for each in self._ready:
                checks.create_task(self._watch(each))
            runner = web.ServerRunner(web.Server(self._pass_on))
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port).start()

    async def _watch(self, port: int) -> None:
        while True:
            self._ready[port] = await self._is_ready(port)
            await asyncio.sleep(CHECK_S)

    async def _is_ready(self, port: int) -> bool:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            url = f"http://127.0.0.1:{port}/v2/health/ready"
            async with self._session.get(url, timeout=_CHECK_TIMEOUT) as response:
                return response.status == 200
        return False

    async def _pass_on(self, request: web.BaseRequest) -> web.Response:
        ready = [port for port, is_ready in self._ready.items() if is_ready]
        if not ready:
            return web.Response(status=503, text="no service is ready")
        port = ready[next(self._turns) % len(ready)]
        headers = {"Content-Type": request.headers.get("Content-Type", "application/octet-stream")}
        body = await request.read()
        try:
            url = f"http://127.0.0.1:{port}{request.raw_path}"
            async with self._session.request(request.method, url, data=body, headers=headers) as answer:
                kept = {
                    name: answer.headers[name]
                    for name in ("Content-Type", "Server-Timing")
                    if name in answer.headers
                }
                return web.Response(status=answer.status, body=await answer.read(), headers=kept)
        except aiohttp.ClientError as error:
            return web.Response(status=502, text=type(error).__name__)


if __name__ == "__main__":
    own, *others = map(int, sys.argv[1:])
    asyncio.run(ReadyProxy(others).serve(own))
