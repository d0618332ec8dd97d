"""The store's delta: what it takes and refuses, what it keeps, and what several or killed writers leave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index_builder import delta as delta_module
from index_builder.delta import DELTA, Delta, DeltaError, DeltaFile, NewItem, decode_delta, encode_delta
from index_builder.storage import open_storage
from tests import forked

WRITER = Path(__file__).parent / "delta_writing_process.py"


@pytest.fixture
def file(store_url: str) -> DeltaFile:
    """The delta of a store that holds something, on disk and in an object store."""
    storage = open_storage(store_url)
    with storage.staging() as staging:
        (staging / "anything").mkdir()
        (staging / "anything" / "file").write_bytes(b"x")
        storage.add(staging / "anything", "anything")
    return DeltaFile(store_url)


def item(item_id: str, **similar: float) -> NewItem:
    return NewItem(item_id, similar or {"i1": 1.0})


def test_what_is_added_and_deleted_is_read_again(file: DeltaFile) -> None:
    assert file.read().version == "none"
    file.add([item("n1", i1=2.0, i2=1.0), NewItem("n2", features=("genre=Drama",))])
    file.delete(["i7", "n2"])
    read = DeltaFile(file.url).read()
    assert [entry.item_id for entry in file.entries()] == ["n1"]
    assert dict(read.items["n1"].similar) == {"i1": 2.0, "i2": 1.0}
    assert file.deleted() == ["i7", "n2"]
    assert abs(read.items["n1"].added - time.time()) < 60
    assert read.revision == 2


def test_a_change_that_changes_nothing_writes_nothing(file: DeltaFile) -> None:
    first = file.delete(["i7"])
    assert file.delete(["i7"]) == first
    assert file.fold([]).version == first.version


def test_a_deleted_item_comes_back_only_by_undeleting_it(file: DeltaFile) -> None:
    file.add([item("n1")])
    file.delete(["n1"])
    with pytest.raises(DeltaError, match="'n1' was deleted: undelete it"):
        file.add([item("n1")])
    file.undelete(["n1"])
    assert file.entries() == []
    file.add([item("n1")])
    assert [entry.item_id for entry in file.entries()] == ["n1"]
    with pytest.raises(DeltaError, match="'n9' is not deleted"):
        file.undelete(["n9"])


def test_folding_keeps_what_a_rollback_may_need_and_deletions_of_what_a_bundle_holds(
    file: DeltaFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.add([item("old"), item("waiting")])
    file.delete(["gone", "held"])
    assert file.fold({"old", "held"}).items.keys() == {"old", "waiting"}, "too young to be forgotten"
    late = time.time() + 4 * 86_400
    monkeypatch.setattr(delta_module.time, "time", lambda: late)
    file.add([item("young")])
    after = file.fold(["old", "young", "held"])
    assert after.items.keys() == {"waiting", "young"}
    assert after.deleted.keys() == {"gone", "held"}
    monkeypatch.setattr(delta_module.time, "time", lambda: late + 31 * 86_400)
    assert file.fold(["held"]).deleted.keys() == {"held"}
    assert file.fold(["held"], keep_items_days=0).items.keys() == {"waiting", "young"}
    assert file.fold(["young"], keep_items_days=0).items.keys() == {"waiting"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (NewItem("", {"i1": 1.0}), "item_id: got ''"),
        (NewItem("a\nb", {"i1": 1.0}), "printable"),
        (NewItem("n" * 129, {"i1": 1.0}), "1 to 128"),
        (NewItem("n1"), "neither similar_item_ids nor features"),
        (NewItem("n1", {"n1": 1.0}), "neither similar_item_ids nor features"),
        (NewItem("n1", {"i1": 0.0}), "weight 0.0"),
        (NewItem("n1", {"i1": float("nan")}), "weight nan"),
        (NewItem("n1", {"i1": True}), "weight True"),
        (NewItem("n1", {f"i{n}": 1.0 for n in range(65)}), "65 similar_item_ids: give at most 64"),
        (NewItem("n1", features=tuple(f"f{n}" for n in range(65))), "65 features"),
        (NewItem("n1", features=("\ud800",)), "features: got"),
    ],
)
def test_a_wrong_definition_is_refused_and_nothing_is_written(
    bad: NewItem, message: str, tmp_path: Path
) -> None:
    file = DeltaFile(tmp_path)
    with pytest.raises(DeltaError, match=message):
        file.add([item("fine"), bad])
    assert file.read_bytes() is None


def test_too_many_are_refused(file: DeltaFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta_module, "MAX_ITEMS", 3)
    monkeypatch.setattr(delta_module, "MAX_DELETED", 2)
    file.add([item(f"n{n}") for n in range(3)])
    file.add([item("n2")])  # defined anew, not one more
    with pytest.raises(DeltaError, match="3 new items and 1 more are above the limit of 3"):
        file.add([item("n3")])
    with pytest.raises(DeltaError, match="limit of 2"):
        file.delete(["a", "b", "c"])
    monkeypatch.setattr(delta_module, "MAX_BYTES", 10)
    with pytest.raises(DeltaError, match="the limit is 10"):
        file.delete(["a"])


def test_a_store_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeltaError, match="no bundle store at"):
        DeltaFile(tmp_path / "nothing").delete(["i1"])


def test_every_flipped_bit_and_every_cut_is_refused() -> None:
    data = encode_delta(Delta({"n1": item("n1")}, {"i7": 5}, 1, "", 5))
    assert decode_delta(data).items.keys() == {"n1"}
    for place in range(len(data) - 1):
        flipped = bytearray(data)
        flipped[place] ^= 1 << (place % 8)
        with pytest.raises(DeltaError):
            decode_delta(bytes(flipped))
    for length in range(len(data) - 1):
        with pytest.raises(DeltaError):
            decode_delta(data[:length])


def test_a_damaged_file_is_refused_by_writers_too(file: DeltaFile) -> None:
    file.add([item("n1")])
    open_storage(file.url).replace(DELTA, b"{}\n{}\n")
    for change in (file.read, lambda: file.add([item("n2")]), lambda: file.delete(["i1"])):
        with pytest.raises(DeltaError, match=r"DELTA of store .* is damaged.*: restore it"):
            change()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_anything_else_is_refused_without_another_exception(data: bytes) -> None:
    with pytest.raises(DeltaError):
        decode_delta(data)


@pytest.mark.parametrize(
    "content",
    [
        "[]", "{}", "1e999", '{"items": 1}',
        '{"revision": 1, "updated": 1, "items": [{}], "deleted": {}}',
        '{"revision": 1, "updated": 1, "items": [], "deleted": {"a\\nb": 1}}',
        '{"revision": "x", "updated": 1, "items": [], "deleted": {}}',
        '{"revision": 1e999, "updated": 1, "items": [], "deleted": {}}',
        '{"revision": 1, "updated": 1, "items": [], "deleted": {"a": Infinity}}',
        '{"revision": 1, "updated": 1, "items": [], "deleted": []}',
        "[" * 100_000,
    ],
)  # fmt: skip
def test_a_wrong_schema_under_a_right_checksum_is_refused(content: str) -> None:
    import hashlib
    import json

    body = content.encode()
    head = json.dumps({"format_version": 1, "sha256": hashlib.sha256(body).hexdigest()}).encode()
    with pytest.raises(DeltaError, match="is not a delta"):
        decode_delta(head + b"\n" + body + b"\n")


def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    writers = [
        forked.start([sys.executable, WRITER, tmp_path / "store", "add", writer, 10]) for writer in range(4)
    ]
    assert [writer.wait(120) for writer in writers] == [0] * 4
    delta = DeltaFile(tmp_path / "store").read()
    assert delta.items.keys() == {f"n-{writer}-{n}" for writer in range(4) for n in range(10)}
    assert delta.deleted.keys() == {f"d-{writer}-{n}" for writer in range(4) for n in range(10)}
    assert delta.revision == 80


def test_a_kill_at_any_file_operation_leaves_the_old_delta_or_the_new(tmp_path: Path) -> None:
    """SIGKILL before every file operation of a change; the next writer then succeeds."""
    outcomes = []
    for number in range(1, 1_000):
        store = tmp_path / str(number)
        store.mkdir()
        DeltaFile(store).add([item("before")])
        ended = forked.run([sys.executable, WRITER, store, "kill", number], timeout=60)
        held = DeltaFile(store).read().items.keys()
        outcomes.append(held == {"before", "killed"})
        assert outcomes[-1] or held == {"before"}
        assert DeltaFile(store).add([item("after")]).items.keys() == held | {"after"}
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL
    assert len(outcomes) > 6
    assert outcomes == sorted(outcomes)
    assert not outcomes[0]
    assert outcomes[-1]


def test_a_killed_writer_does_not_hold_the_lock(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    process = forked.start([sys.executable, WRITER, tmp_path / "store", "hold"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    assert DeltaFile(tmp_path / "store").add([item("n1")]).revision == 1
