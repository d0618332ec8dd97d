"""A running service follows its store: new items are recalled, deleted ones never; rollbacks take effect."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from index_builder.delta import DeltaFile, NewItem
from index_builder.publish import Store
from tests import forked
from tests.waiting import eventually

TINY = {"embedding_dim": 8, "max_length": 6, "num_steps": 4, "session_length": 3}
HISTORY = [{"item_id": f"i{n}", "timestamp": 1_600_000_000 + n} for n in range(1, 6)]


def t2diff_index(*arguments: object) -> str:
    ran = run_t2diff_index(*arguments)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def run_t2diff_index(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [forked.python(), "-c", "from index_builder.cli import main; main()", *arguments]
    return forked.run(command, timeout=120)


def ids(answer: dict[str, Any]) -> list[str]:
    return [candidate["item_id"] for candidate in answer["candidates"]]


class Follower:
    """A service on a store of its own that looks at it every 0.3 s, and a user with a stored sequence."""

    def __init__(self, served: Any, folder: Path) -> None:
        self.served = served
        self.folder = folder
        self.client = served.client()
        for event in HISTORY:
            assert self.client.post("/events", json={"user_id": "u", **event}).status_code == 200

    def recall(self, user: str = "u", top_k: int = 20, **asked: Any) -> list[str]:
        response = self.client.post("/recall", json={"user_id": user, "top_k": top_k, **asked})
        assert response.status_code == 200, response.text
        assert len(response.json()["candidates"]) == top_k or "shortfall" in response.json()
        return ids(response.json())

    def admin(self, method: str, path: str, body: Any = None) -> httpx.Response:
        return httpx.request(method, f"{self.served.admin_url}{path}", json=body, timeout=60)

    @property
    def model(self) -> dict[str, Any]:
        return self.client.get("/v2/models/recall").json()


@pytest.fixture
def follower(serve: Any, tiny_bundles: Path, copied: Any, own_redis: Any, request: Any) -> Follower:
    folder = copied(tiny_bundles)
    namespace = request.node.name.replace("[", "-").replace("]", "")[:64]
    served = serve(
        folder, redis_url=own_redis.url, redis_namespace=namespace, reload_poll_s=0.3, log_requests="all"
    )
    return Follower(served, folder)


def test_an_added_item_is_recalled_for_a_matching_user_and_a_deleted_one_never_again(
    follower: Follower, tmp_path: Path
) -> None:
    before = follower.recall()
    definitions = tmp_path / "new.csv"
    definitions.write_text(f"item_id,similar_item_ids\nbrand-new,{'|'.join(before[:3])}\n")
    shown = t2diff_index("add-items", follower.folder, "--items", definitions)
    assert "added 1 items" in shown
    eventually(lambda: "brand-new" in follower.recall(), "the new item is not recalled")
    assert follower.served.metric("t2diff_delta_items") == 1
    assert follower.model["delta"]["new_items"] == 1
    assert "brand-new" in follower.recall(user="stranger", sequence=HISTORY)
    assert "brand-new" not in follower.recall(exclude_item_ids=["brand-new"])
    assert follower.client.post("/events", json={"user_id": "u", "item_id": "brand-new"}).status_code == 200
    assert "brand-new" not in follower.recall(), "what the user has seen does not come back"
    assert "brand-new" in follower.recall(exclude_seen=False, sequence=HISTORY)

    popular = follower.recall(user="nobody")[0]
    gone = ["brand-new", before[0], popular]
    t2diff_index("delete-items", follower.folder, *(word for name in gone for word in ("--ids", name)))
    eventually(lambda: follower.model["delta"]["deleted_items"] == 3, "the deletion is not followed")
    assert follower.served.metric("t2diff_tombstones") == 3
    for seed in range(20):
        assert not {*follower.recall(seed=seed, exclude_seen=False)} & {*gone}
        assert not {*follower.recall(user="nobody", top_k=57 + seed)} & {*gone}
        members = [{"user_id": user, "top_k": 60, "seed": seed, "sequence": HISTORY} for user in ("u", "v")]
        members.append({"user_id": "nobody", "top_k": 60})
        answers = follower.client.post("/recall/batch", json={"requests": members}).json()["responses"]
        assert [answer["status"] for answer in answers] == [200] * 3
        for answer in answers:
            assert not {*ids(answer["answer"])} & {*gone}
            assert len(ids(answer["answer"])) >= 52
    refused = run_t2diff_index("add-items", follower.folder, "--items", definitions)
    assert refused.returncode == 2
    assert "'brand-new' was deleted: undelete it" in refused.stderr
    assert "delta loaded" in follower.served.log


def test_new_and_deleted_items_outlive_a_swap_a_rollback_and_are_folded(
    follower: Follower, build: Any
) -> None:
    first = follower.served.bundle
    file = DeltaFile(follower.folder)
    best = follower.recall()
    file.add([NewItem("i61", {best[0]: 1.0}), NewItem("other", {best[1]: 1.0})])
    file.delete([best[2]])
    eventually(lambda: follower.model["delta"]["new_items"] == 2, "not followed")
    store = Store(follower.folder)
    second = build(store, 1, TINY, 61)
    store.publish(second)
    eventually(lambda: follower.model["bundle"] == second, "not swapped")
    assert follower.model["delta"] == {
        "version": file.read().version,
        "new_items": 1,  # the bundle's own i61 wins
        "unplaced_items": 0,
        "deleted_items": 1,
    }
    everything = follower.recall(top_k=70, exclude_seen=False)
    assert len(everything) == len({*everything}) == 61, "61 of the bundle, one new, one deleted"
    assert {"i61", "other"} <= {*everything}
    assert best[2] not in everything
    file.fold(store_ids(61), keep_items_days=0)
    assert [item.item_id for item in file.entries()] == ["other"]
    assert file.deleted() == [best[2]]
    t2diff_index("rollback", follower.folder)
    eventually(lambda: follower.model["bundle"] == first, "not rolled back within the poll interval")
    everything = follower.recall(top_k=70, exclude_seen=False)
    assert best[2] not in everything
    assert "other" in everything
    assert len(everything) == 60


def store_ids(count: int) -> list[str]:
    return [f"i{n}" for n in range(1, count + 1)]


def test_a_bad_delta_is_refused_logged_and_counted_while_the_old_one_stays(follower: Follower) -> None:
    file = DeltaFile(follower.folder)
    gone = follower.recall()[0]
    good = file.delete([gone])
    eventually(lambda: follower.model["delta"]["version"] == good.version, "not followed")
    path = follower.folder / "DELTA"
    sound = path.read_bytes()
    for bad in (b"", sound[:-20], sound.replace(b"deleted", b"Deleted"), b"\xff" * 100):
        refused = follower.served.metric("t2diff_delta_loads_total", outcome="refused")
        path.write_bytes(bad)
        eventually(
            lambda refused=refused: (
                follower.served.metric("t2diff_delta_loads_total", outcome="refused") > refused
            ),
            "not refused",
        )
        time.sleep(1)  # some more looks at it
        assert follower.served.metric("t2diff_delta_loads_total", outcome="refused") == refused + 1
        assert follower.model["delta"]["version"] == good.version
        assert gone not in follower.recall(exclude_seen=False)
        answer = follower.admin("POST", "/admin/reload")
        assert answer.status_code == 409
        assert "DELTA" in answer.json()["detail"]
    assert "delta refused" in follower.served.log
    assert follower.served.metric("t2diff_delta_age_seconds") > 0
    path.write_bytes(sound)
    file.undelete([gone])
    eventually(lambda: gone in follower.recall(exclude_seen=False), "the repaired delta is not followed")


def test_the_admin_api_changes_the_store_and_this_replica_at_once_and_others_follow(
    follower: Follower, serve: Any, build: Any
) -> None:
    replica = serve(follower.folder, reload_poll_s=0.3)
    best = follower.recall()
    added = follower.admin(
        "POST", "/admin/items", {"items": [{"item_id": "new", "similar_item_ids": {best[0]: 3, best[1]: 1}}]}
    )
    assert added.status_code == 200, added.text
    assert added.json() == {
        "version": DeltaFile(follower.folder).read().version,
        "new_items": 1,
        "deleted_items": 0,
        "in_use": True,
    }
    assert "new" in follower.recall(), "at once"
    with replica.client() as client:
        eventually(lambda: client.get("/v2/models/recall").json()["delta"]["new_items"] == 1, "no follower")
        listed = follower.admin("GET", "/admin/items").json()
        assert [item["item_id"] for item in listed["items"]] == ["new"]
        for method, path in (("DELETE", "/admin/items"), ("POST", "/admin/items/delete")):
            name = "new" if method == "DELETE" else best[0]
            assert follower.admin(method, path, {"item_ids": [name]}).status_code == 200
            assert name not in follower.recall(exclude_seen=False)
        eventually(
            lambda: client.get("/v2/models/recall").json()["delta"]["deleted_items"] == 2, "no follower"
        )
        again = follower.admin("POST", "/admin/items", {"items": [{"item_id": "new", "features": ["a=b"]}]})
        assert (again.status_code, again.json()["type"]) == (409, "urn:t2diff:problem:bundle-store")
        assert follower.admin("POST", "/admin/items/undelete", {"item_ids": [best[0]]}).status_code == 200
        assert best[0] in follower.recall(exclude_seen=False)
        store = Store(follower.folder)
        store.publish(build(store, 3, TINY))
        assert follower.admin("POST", "/admin/reload").json()["bundle"] == store.current()
        back = follower.admin("POST", "/admin/rollback")
        assert (back.status_code, back.json()["bundle"]) == (200, follower.served.bundle)
        assert store.current() == follower.served.bundle
        assert follower.admin("POST", "/admin/rollback").status_code == 409
        assert follower.admin("POST", "/admin/rollback", {"to": "nowhere"}).status_code == 409


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/admin/items", {}, 422),
        ("/admin/items", {"items": []}, 422),
        ("/admin/items", {"items": [{"item_id": "n"}]}, 409),
        ("/admin/items", {"items": [{"item_id": "n", "similar_item_ids": {"i1": -1}}]}, 422),
        ("/admin/items", {"items": [{"item_id": "n", "similar_item_ids": {"i1": True}}]}, 422),
        ("/admin/items", {"items": [{"item_id": "n\n", "features": ["a"]}]}, 422),
        ("/admin/items", {"items": [{"item_id": "n", "features": "a"}]}, 422),
        ("/admin/items", {"items": [{"item_id": "n", "features": ["a"], "colour": 1}]}, 422),
        ("/admin/items/delete", {"item_ids": [None]}, 422),
        ("/admin/items/delete", {"item_ids": ["i"] * 1001}, 422),
        ("/admin/items/undelete", {"item_ids": ["never-deleted"]}, 409),
        ("/admin/rollback", [], 422),
    ],
)
def test_each_admin_refusal_is_a_problem(idle: Any, path: str, body: Any, status: int) -> None:
    response = httpx.post(f"{idle.admin_url}{path}", json=body, timeout=60)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"


@pytest.fixture(scope="module")
def idle(serve: Any, tiny_bundles: Path) -> Any:
    return serve(tiny_bundles)


def test_every_log_line_of_a_request_names_its_bundle(follower: Follower) -> None:
    follower.recall()
    follower.recall(user="nobody")
    follower.client.post("/recall", json={"user_id": 1.5})
    follower.client.post("/recall/batch", json={"requests": [{"user_id": "u"}]})
    follower.client.post("/recall", json={"user_id": "u"}, headers={"X-Request-ID": "the-last-one"})
    follower.admin("POST", "/admin/items/delete", {"item_ids": ["i9"]})
    eventually(
        lambda: '"delta loaded"' in follower.served.log and "the-last-one" in follower.served.log, "log"
    )
    lines = [json.loads(line) for line in follower.served.log.splitlines()]
    about = [line for line in lines if line["logger"] in ("t2diff.request", "t2diff.reload")]
    assert len(about) >= 12
    assert {line.get("bundle") for line in about} == {follower.served.bundle}
    assert {line.get("fallback") for line in about} == {None, "no_history"}


def test_an_error_names_the_bundle_that_was_to_answer(serve: Any, slow_bundles: Path) -> None:
    served = serve(slow_bundles, tower_engine="eager", on_deadline="error", log_requests="failed")
    with served.client() as client:
        late = client.post(
            "/recall", json={"user_id": "u", "sequence": HISTORY}, headers={"X-Deadline-Ms": "1"}
        )
    assert (late.status_code, late.json()["bundle"]) == (504, served.bundle)
    eventually(lambda: '"status":504' in served.log, "log")
    assert json.loads(served.log.splitlines()[-1])["bundle"] == served.bundle


def test_old_bundles_leave_memory_after_their_last_request(follower: Follower, build: Any) -> None:
    """Twenty swaps; then the process maps the files of one bundle, and of no other."""
    store = Store(follower.folder)
    bundles = [follower.served.bundle, *(build(store, seed, TINY) for seed in (1, 2, 3))]
    DeltaFile(follower.folder).add([NewItem("new", {"i1": 1.0})])
    maps = Path(f"/proc/{follower.served.process.pid}/maps")
    assert bundles[0] in maps.read_text()
    for number in range(1, 21):
        store.publish(bundles[number % 4])
        assert follower.admin("POST", "/admin/reload").json()["bundle"] == bundles[number % 4]
        assert "new" in follower.recall(top_k=70)
    served = bundles[20 % 4]
    others = {*bundles} - {served}
    eventually(
        lambda: not [name for name in others if name in maps.read_text()], "an old bundle is still mapped"
    )
    assert served in maps.read_text()
