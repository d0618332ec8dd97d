"""kill -9 of the service and of its embedded Redis at once: what /events acknowledged is there afterwards."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
from redis import Redis

from service.packed_sequence import unpack


def test_kill_9_of_service_and_redis_loses_no_acknowledged_event(
    serve: Any, tiny_bundles: Path, tmp_path: Path
) -> None:
    acknowledged: list[tuple[str, int]] = []
    served = serve(tiny_bundles, state_dir=tmp_path, sequence_max_length=10_000)
    redis_pid = int((tmp_path / "redis" / "redis.pid").read_text())

    def send(user_id: str) -> None:
        with served.client() as client:
            for timestamp in range(1, 100_000):
                event = {"user_id": user_id, "item_id": "i1", "timestamp": timestamp}
                try:
                    if client.post("/events", json=event).status_code != 200:
                        return
                except httpx.TransportError:
                    return
                acknowledged.append((user_id, timestamp))

    senders = [threading.Thread(target=send, args=(f"u{number}",)) for number in range(4)]
    for sender in senders:
        sender.start()
    while len(acknowledged) < 200:
        assert any(sender.is_alive() for sender in senders)
        time.sleep(0.01)
    served.process.kill()
    os.kill(redis_pid, signal.SIGKILL)
    for sender in senders:
        sender.join()
    again = serve(tiny_bundles, state_dir=tmp_path, sequence_max_length=10_000)
    assert re.search(r"embedded .*data in", again.greeting)
    with Redis(unix_socket_path=str(tmp_path / "redis" / "redis.sock")) as client:
        for user_id in {user_id for user_id, _ in acknowledged}:
            stored = set(unpack(client.get(f"t2diff:seq1:{user_id}"), user_id).timestamps)
            assert {timestamp for user, timestamp in acknowledged if user == user_id} <= stored
