"""The floor of a load test: an endpoint that does nothing, behind the service's own HTTP listener.

It answers POST /recall with a prepared body of the asked size, so that what it costs is what the server,
the sockets and the generator cost before anything is recalled. `python -m loadtest.floor TOP_K` prints
its URL.
"""

from __future__ import annotations

import asyncio
import socket
import sys

import orjson
import uvloop

from service.middleware import Application, Receive, Scope, Send
from service.server import Listener

_STOP_S = 1


def floor_app(top_k: int) -> Application:
    """An ASGI app that sends `top_k` made-up candidates to whoever asks, and reads only the user id."""
    candidates = [{"item_id": f"item-{number}", "score": 1.0 / (number + 1)} for number in range(top_k)]
    body = {"request_id": "0" * 32, "bundle": "floor", "route": "floor", "degraded": False}
    tail = b"," + orjson.dumps(body | {"candidates": candidates})[1:]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked = b""
        more = True
        while more:
            message = await receive()
            asked += message.get("body", b"")
            more = message.get("more_body", False)
        user = orjson.loads(asked)["user_id"] if asked else ""
        answer = b'{"user_id":' + orjson.dumps(user) + tail
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return app


async def _serve(top_k: int) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        print(f"recall http://127.0.0.1:{bound.getsockname()[1]}", flush=True)
        await Listener(floor_app(top_k), timeout_s=_STOP_S).serve(sockets=[bound])


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(int(sys.argv[1])))
