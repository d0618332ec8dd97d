"""Reading a body by itself; what callers see of it is in test_http."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from service.body import read_body
from service.middleware import RequestContext

pytestmark = pytest.mark.anyio


async def test_a_read_that_is_cancelled_as_the_body_comes_is_cancelled() -> None:
    arrived = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await arrived.wait()
        return {"type": "http.request", "body": b"{}", "more_body": False}

    context = RequestContext(request_id="r", started=time.monotonic(), headers={})
    reading = asyncio.create_task(read_body(context, receive, max_bytes=10, timeout_s=20))
    await asyncio.sleep(0)
    arrived.set()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
