"""What is pruned, what never is, and that a kill in the middle leaves only whole bundles."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
import pytest

from index_builder.bundle import load_bundle
from index_builder.bundle_files import MANIFEST, BundleError
from index_builder.publish import Store
from index_builder.retention import built_at, choose_removable, parse_age, prune
from index_builder.storage import StoreError, open_storage
from tests import forked

PRUNING_PROCESS = Path(__file__).parent / "pruning_process.py"
PRUNE = """
import sys
from datetime import timedelta
from index_builder.publish import Store
from index_builder.retention import prune

prune(Store(sys.argv[1]), keep=1, younger_than=timedelta(0))
"""
NUM_KILLS = 12
AT_ONCE = {"keep": 1, "younger_than": timedelta(0)}
NOW = datetime(2026, 11, 22, 3, tzinfo=UTC)


def night(days_ago: int) -> str:
    return f"{NOW - timedelta(days=days_ago):%Y%m%dT%H%M%SZ}-{days_ago:08x}"


def removable(history: list[int], **rules: object) -> list[int]:
    """Of thirty nights, those that may go, by their age in days."""
    rules = {"keep": 3, "younger_than": timedelta(days=7), "protected": (), "now": NOW} | rules
    ids = [night(days_ago) for days_ago in range(30)]
    removed = choose_removable(ids, [night(days_ago) for days_ago in history], **rules)
    return [ids.index(bundle_id) for bundle_id in removed]


def test_the_latest_built_and_the_young_are_kept():
    assert removable([0, 1]) == list(range(8, 30))
    assert removable([0, 1], keep=12) == list(range(12, 30))
    assert removable([0, 1], younger_than=timedelta(days=20)) == list(range(21, 30))


def test_the_served_one_and_the_one_before_are_kept_however_old():
    assert removable([29, 28], keep=1) == list(range(8, 28))
    assert removable([29, 29, 28], keep=1) == list(range(8, 28))  # before it, not itself again


def test_the_latest_published_and_the_named_are_kept():
    assert removable([0, 1, 25, 26, 27]) == [age for age in range(8, 30) if age != 25]
    assert removable([0, 1], protected=[night(12)]) == [age for age in range(8, 30) if age != 12]


def test_ages_are_read():
    assert parse_age("14d") == timedelta(days=14)
    assert parse_age("36h") == timedelta(hours=36)
    assert parse_age("90m") == timedelta(minutes=90)
    for wrong in ("14", "d", "-1d", "1.5d", "14 d", "9999999d", ""):
        with pytest.raises(ValueError, match="such as 14d; got"):
            parse_age(wrong)


def test_what_is_pruned_is_gone_and_the_rest_still_serves(store_url, fill, built_bundles):
    store, (a, b, c, d) = fill(store_url, built_bundles)
    latest = max(a, b, c, d)
    a, b, c = (bundle_id for bundle_id in (a, b, c, d) if bundle_id != latest)
    for bundle_id in (a, b, c, b):
        store.publish(bundle_id)
    planned = prune(store, **AT_ONCE, dry_run=True)
    assert planned.removed == [a]
    assert a in store.bundle_ids()
    done = prune(store, **AT_ONCE)
    assert done == planned
    assert store.bundle_ids() == done.kept == sorted((b, c, latest), reverse=True)
    assert store.history() == [b, c, b]  # the pointer forgets what is gone
    assert store.rollback() == c
    assert load_bundle(store.bundle_url(c)).bundle_id == c
    with pytest.raises(StoreError, match=f"no bundle '{a}'"):
        store.publish(a)
    assert prune(store, **AT_ONCE).removed == []
    file_system, root = fsspec.core.url_to_fs(store_url)
    assert not any(a in path for path in file_system.find(root))


def test_only_a_store_with_a_sound_pointer_is_pruned(store_url, fill, built_bundles, tmp_path):
    with pytest.raises(StoreError, match="no bundle store at"):
        prune(Store(store_url), **AT_ONCE)
    store, ids = fill(store_url, built_bundles)
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        prune(store, keep=0, younger_than=timedelta(0))
    with pytest.raises(
        ValueError, match=r"20200101T000000Z-00000000 is to be kept, but store .* does not hold"
    ):
        prune(store, **AT_ONCE, protected=["20200101T000000Z-00000000"])
    file_system, root = fsspec.core.url_to_fs(store_url)
    file_system.pipe_file(f"{root}/CURRENT", b"damaged\n")
    with pytest.raises(BundleError, match=r"CURRENT of store .* is damaged"):
        prune(store, **AT_ONCE)
    assert store.bundle_ids() == sorted(ids, reverse=True)


def test_a_young_store_keeps_everything(store_url, fill, built_bundles):
    store, ids = fill(store_url, built_bundles)
    later = built_at(max(ids)) + timedelta(days=13)
    assert prune(store, keep=1, younger_than=timedelta(days=14), now=later).removed == []
    later += timedelta(days=1, minutes=10)
    assert len(prune(store, keep=1, younger_than=timedelta(days=14), now=later).removed) == 3


def test_a_local_bundle_that_is_being_loaded_stays_and_one_in_use_may_go(fill, built_bundles, tmp_path):
    store, ids = fill(str(tmp_path / "store"), built_bundles)
    oldest = min(ids)
    used = load_bundle(store.bundle_url(sorted(ids)[1]))
    with open_storage(store.url).local_copy(oldest):
        done = prune(store, **AT_ONCE)
        assert done.busy == [oldest]
        store.check(oldest)
    assert len(done.removed) == 2
    assert used.bundle_id in done.removed
    assert (used.index.search(used.item_embeddings[:3].copy(), 5)[1] >= 0).all()
    assert prune(store, **AT_ONCE).removed == [oldest]


def test_leftovers_of_killed_builds_go_after_a_day(tmp_path, fill, built_bundles):
    store, _ = fill(str(tmp_path / "store"), built_bundles[:1])
    with store.staging() as living:
        dead, young = tmp_path / "store" / ".staging-dead", tmp_path / "store" / ".staging-young"
        for folder in (dead, young):
            shutil.copytree(built_bundles[0], folder)
        yesterday = datetime.now().timestamp() - 25 * 3600
        os.utime(dead, (yesterday, yesterday))
        os.utime(living, (yesterday, yesterday))
        assert prune(store, **AT_ONCE, dry_run=True).leftovers == [".staging-dead"]
        assert dead.exists()
        assert prune(store, **AT_ONCE).leftovers == [".staging-dead"]
        assert not dead.exists()
        assert young.exists()
        assert living.exists()


def test_leftovers_of_killed_uploads_go_after_a_day(s3_url, fill, built_bundles):
    store, (a, b) = fill(s3_url, built_bundles[:2])
    file_system, root = fsspec.core.url_to_fs(s3_url)
    bucket, _, prefix = root.partition("/")
    file_system.rm_file(f"{root}/{b}/{MANIFEST}")
    key = f"{prefix}/{b}/index.faiss"
    upload = file_system.call_s3("create_multipart_upload", Bucket=bucket, Key=key)["UploadId"]
    file_system.call_s3("upload_part", Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"x")
    assert b not in prune(store, **AT_ONCE, dry_run=True).leftovers  # it may still be going on
    leftovers = store.leftovers(0.0)
    assert leftovers == [b, f"{b}/index.faiss upload {upload}"]  # this server dates every upload 2010
    for name in leftovers:
        store.remove_leftover(name)
    assert store.leftovers(0.0) == []
    assert file_system.find(f"{root}/{b}") == []
    assert not file_system.call_s3("list_multipart_uploads", Bucket=bucket).get("Uploads")
    store.check(a)


def publish_two(store: Store, ids: list[str]) -> list[str]:
    """Publishes the two oldest, so that a prune has the third to remove."""
    for bundle_id in sorted(ids)[:2]:
        store.publish(bundle_id)
    return store.history()


def test_a_prune_killed_at_any_file_operation_lists_only_whole_bundles(fill, built_bundles, tmp_path):
    store, ids = fill(str(tmp_path / "store"), built_bundles)
    history = publish_two(store, ids)
    victim = sorted(ids)[2]
    out = tmp_path / "killed"
    out.mkdir()
    process = forked.run([sys.executable, PRUNING_PROCESS, store.url, out], timeout=120)
    assert process.returncode == 0, process.stderr
    num_points = int(process.stdout)
    assert num_points > 15
    listed = []
    for number in range(1, num_points + 1):
        killed = Store(out / str(number))
        listed.append(victim in killed.bundle_ids())
        for bundle_id in killed.bundle_ids():
            killed.check(bundle_id)
        assert killed.history() == history
        prune(killed, **AT_ONCE)
        assert sorted(os.listdir(out / str(number))) == sorted([".lock", "CURRENT", *set(ids) - {victim}])
    assert listed == sorted(listed, reverse=True)
    assert listed[0]
    assert not listed[-2]  # killed in the middle of removing


def test_a_prune_of_object_storage_killed_at_any_moment_lists_only_whole_bundles(
    s3_url, fill, built_bundles, connection
):
    store, ids = fill(s3_url, built_bundles)
    history = publish_two(store, ids)
    victim = sorted(ids)[2]

    def run(kill_at: int | None) -> int:
        connection.reset()
        process = forked.start([sys.executable, "-c", PRUNE, s3_url], stderr=subprocess.PIPE)
        if kill_at is not None:
            connection.at_sent(kill_at, lambda: os.kill(process.pid, signal.SIGKILL))
        _, errors = process.communicate(timeout=120)
        assert process.returncode == (0 if kill_at is None else -signal.SIGKILL), errors
        num_bytes = connection.num_sent
        connection.reset()
        return num_bytes

    num_bytes = run(None)
    assert victim not in store.bundle_ids()
    states = set()
    for number in range(NUM_KILLS):
        for name in store.leftovers(0.0):
            store.remove_leftover(name)
        if victim not in store.bundle_ids():
            fill(s3_url, [bundle for bundle in built_bundles if bundle.name == victim])
        run(1 + number * (num_bytes - 1) // NUM_KILLS)
        states.add((victim in store.bundle_ids(), victim in store.leftovers(0.0)))
        for bundle_id in store.bundle_ids():
            store.check(bundle_id)
        assert store.history() == history
    assert states >= {(True, False), (False, True)}
