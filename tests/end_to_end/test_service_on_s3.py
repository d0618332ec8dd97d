"""`t2diff-serve` on a store in object storage: it loads, follows the pointer, and survives the store."""

from __future__ import annotations

from collections.abc import Callable

import fsspec
import httpx

from index_builder.publish import Store
from tests.end_to_end.conftest import Serve, Served
from tests.s3_server import Connection
from tests.untrained import TINY
from tests.waiting import eventually


def bundle_of(service: Served) -> str:
    answer = httpx.post(f"{service.url}/recall", json={"user_id": "u", "top_k": 5}, timeout=30)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["candidates"]) == 5
    return answer.json()["bundle"]


def test_the_service_follows_the_pointer_on_s3(
    serve: Serve,
    build: Callable[..., str],
    s3_url: str,
    connection: Connection,
    connect: Callable[[str], None],
) -> None:
    connect(connection.server_url)
    store = Store(s3_url)  # of the nightly job, whose way to the storage is not the service's
    file_system, root = fsspec.core.url_to_fs(s3_url)
    first, second, third = (build(store, seed, TINY) for seed in range(3))
    store.publish(first)
    connect(connection.url)
    service = serve(s3_url, reload_poll_s=0.2)

    def refused() -> float:
        return service.metric("t2diff_reloads_total", outcome="refused")

    assert service.bundle == bundle_of(service) == first
    store.publish(second)
    eventually(lambda: bundle_of(service) == second, "a publication was not followed")
    store.rollback()
    eventually(lambda: bundle_of(service) == first, "a rollback was not followed")
    assert refused() == 0

    connection.cut()  # the storage is gone: nothing changes for those who ask
    eventually(lambda: refused() > 0, "an outage of the store was not counted")
    assert bundle_of(service) == first
    connection.reset()

    before = refused()  # a prune elsewhere takes the bundle while the service is reading it
    name = f"{root}/{third}/model.safetensors"
    connection.before(f"GET /{name}".encode(), lambda: file_system.rm_file(name))
    store.publish(third)
    eventually(lambda: "model.safetensors vanished while it was read" in service.log, "nothing was refused")
    assert refused() > before
    assert bundle_of(service) == first

    store.publish(second)
    eventually(lambda: bundle_of(service) == second, "the next publication was not followed")
    assert "test-secret" not in service.log
    assert "Traceback" not in service.log
