"""The pointer always names a complete bundle, and its history leads back step by step."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import fsspec
import pytest

from index_builder.bundle import current_bundle, load_bundle
from index_builder.bundle_files import INDEX, BundleError
from index_builder.canary import replay_canary
from index_builder.publish import Store
from index_builder.storage import StoreError
from tests import forked

PUBLISHING_PROCESS = Path(__file__).parent / "publishing_process.py"


def test_nothing_is_served_before_the_first_publication(store_url, fill, built_bundles):
    store, _ = fill(store_url, built_bundles[:1])
    assert store.current() is None
    assert current_bundle(store_url) is None
    with pytest.raises(StoreError, match=r"nothing to roll back to .* no bundle was published so far"):
        store.rollback()


def test_a_published_bundle_is_served_and_answers(store_url, fill, built_bundles):
    store, (bundle_id,) = fill(store_url, built_bundles[:1])
    store.publish(bundle_id)
    assert Store(store_url).current() == bundle_id
    bundle = load_bundle(current_bundle(store_url))
    assert bundle.bundle_id == bundle_id
    replay_canary(bundle.model, bundle.index, bundle.item_ids, bundle.canary)


def test_rollback_goes_back_one_publication_at_a_time(store_url, fill, built_bundles):
    store, (a, b, c, d) = fill(store_url, built_bundles)
    for bundle_id in (a, b, c):
        store.publish(bundle_id)
    assert store.rollback() == b
    assert Store(store_url).current() == b
    assert store.rollback() == a
    with pytest.raises(StoreError, match=f"nothing to roll back to .* {a} is the only bundle"):
        store.rollback()
    assert store.current() == a
    store.publish(d)
    assert store.history() == [d, a]
    assert store.rollback() == a


def test_rollback_to_a_named_bundle_skips_those_between(store_url, fill, built_bundles):
    store, (a, b, c, d) = fill(store_url, built_bundles)
    for bundle_id in (a, b, c):
        store.publish(bundle_id)
    with pytest.raises(StoreError, match=f"'{d}' was not published before {c}: publish it instead"):
        store.rollback(to=d)
    assert store.rollback(to=a) == a
    assert store.history() == [a]


def test_an_older_bundle_can_be_published_again(store_url, fill, built_bundles):
    store, (a, b, *_) = fill(store_url, built_bundles)
    for bundle_id in (a, b, a, a):
        store.publish(bundle_id)
    assert store.history() == [a, b, a]  # publishing the served one again changes nothing
    assert store.rollback() == b
    assert store.rollback() == a


def test_the_summaries_show_every_bundle_latest_first(store_url, fill, built_bundles):
    store, ids = fill(store_url, built_bundles[:3])
    store.publish(ids[0])
    store.publish(ids[1])
    summaries = store.summaries()
    assert [summary.bundle_id for summary in summaries] == sorted(ids, reverse=True)
    published = {summary.bundle_id: summary.published for summary in summaries}
    assert published == {ids[0]: 1, ids[1]: 0, ids[2]: None}
    assert all(summary.manifest["counts"]["items"] == 60 for summary in summaries)


def damage(store_url: str, path: str) -> None:
    """Flip one bit of a file, wherever the store is."""
    file_system, root = fsspec.core.url_to_fs(store_url)
    sound = file_system.cat_file(f"{root}/{path}")
    file_system.pipe_file(f"{root}/{path}", bytes([sound[0] ^ 1]) + sound[1:])


def test_a_damaged_bundle_is_neither_published_nor_rolled_back_to(store_url, fill, built_bundles):
    store, (a, b, c, _) = fill(store_url, built_bundles)
    store.publish(a)
    store.publish(b)
    damage(store_url, f"{a}/{INDEX}")
    damage(store_url, f"{c}/{INDEX}")
    with pytest.raises(BundleError, match=rf"{c}: index\.faiss is damaged"):
        store.publish(c)
    with pytest.raises(BundleError, match=rf"{a}: index\.faiss is damaged"):
        store.rollback()
    assert store.history() == [b, a]


def test_a_damaged_manifest_is_shown_in_the_list(store_url, fill, built_bundles):
    store, (a, b, *_) = fill(store_url, built_bundles)
    damage(store_url, f"{a}/manifest.json")
    shown = {summary.bundle_id: summary.damage for summary in store.summaries()}
    assert "manifest.json is damaged" in shown[a]
    assert shown[b] is None


@pytest.mark.parametrize("content", [b"", b"\n", b"../../etc\n", b"20261122T031500Z-1a2b3c4g\n", b"\xff\xfe"])
def test_a_damaged_pointer_is_said_and_mended_by_publishing(store_url, fill, built_bundles, content):
    store, (a, *_) = fill(store_url, built_bundles[:1])
    file_system, root = fsspec.core.url_to_fs(store_url)
    file_system.pipe_file(f"{root}/CURRENT", content)
    for read in (store.current, store.history, store.summaries, store.rollback):
        with pytest.raises(BundleError, match=r"CURRENT of store .* is damaged: publish a bundle"):
            read()
    with pytest.raises(BundleError, match=r"CURRENT of store .* is damaged: publish a bundle"):
        current_bundle(store_url)
    store.publish(a)
    assert store.history() == [a]


def test_an_unknown_bundle_or_store_is_named(store_url, fill, built_bundles):
    with pytest.raises(StoreError, match="no bundle store at"):
        Store(store_url).publish("x")
    with pytest.raises(StoreError, match="no bundle store at"):
        Store(store_url).summaries()
    store, (a,) = fill(store_url, built_bundles[:1])
    for unknown in ("20200101T000000Z-00000000", "..", "", "CURRENT"):
        with pytest.raises(StoreError, match=f"no bundle '{unknown}' in store .*; it holds {a}"):
            store.publish(unknown)
    assert store.current() is None


def test_a_bundle_is_never_overwritten(store_url, fill, built_bundles):
    fill(store_url, built_bundles[:1])
    with pytest.raises(StoreError, match="never overwritten"):
        fill(store_url, built_bundles[:1])


def test_an_unusable_url_is_a_store_error():
    with pytest.raises(StoreError, match="cannot open store 'nonsense://x'"):
        Store("nonsense://x")


def test_publishers_at_the_same_time_lose_none_of_their_publications(fill, built_bundles, tmp_path):
    store, ids = fill(str(tmp_path / "store"), built_bundles)
    store.publish(ids[0])
    start = threading.Barrier(len(ids) - 1)

    def publish(bundle_id: str) -> None:
        start.wait()
        Store(store.url).publish(bundle_id)

    for round_number in range(1, 6):
        others = [bundle_id for bundle_id in ids if bundle_id != store.current()]
        threads = [threading.Thread(target=publish, args=(bundle_id,)) for bundle_id in others]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(store.history()[:3]) == set(others)
        assert len(store.history()) == 1 + 3 * round_number


def test_staging_of_a_living_builder_is_kept_and_of_a_dead_one_removed(tmp_path):
    store = Store(tmp_path / "store")
    with store.staging() as first:
        (first / "file").write_bytes(b"x")
        with store.staging() as second:
            assert (first / "file").exists()
            assert second != first
        assert not second.exists()
    assert not first.exists()
    abandoned = tmp_path / "store" / ".staging-abandoned"
    abandoned.mkdir()
    (abandoned / "file").write_bytes(b"x")
    with store.staging():
        assert not abandoned.exists()
    assert store.bundle_ids() == []


def test_a_kill_at_any_file_operation_leaves_a_complete_bundle_served(fill, built_bundles, tmp_path):
    """Every point at which the publishing process touches the store; the next publication then succeeds."""
    store, (old, spare) = fill(str(tmp_path / "store"), built_bundles[:2])
    store.publish(old)
    out = tmp_path / "killed"
    out.mkdir()
    process = forked.run([sys.executable, PUBLISHING_PROCESS, built_bundles[2], store.url, out], timeout=120)
    assert process.returncode == 0, process.stderr
    num_points = int(process.stdout)
    assert num_points > 25
    served_new = []
    for number in range(1, num_points + 1):
        killed = Store(out / str(number))
        current = killed.current()
        served_new.append(current != old)
        assert current in killed.bundle_ids(), f"point {number}"
        for bundle_id in killed.bundle_ids():  # what the store shows is complete, served or not
            killed.check(bundle_id)
        assert killed.history()[-1] == old
        with killed.staging():
            leftovers = sorted(path.name for path in (out / str(number)).glob(".staging-*"))
        assert len(leftovers) == 1, f"point {number}: {leftovers}"
        killed.publish(spare)
        assert killed.current() == spare
    assert served_new == sorted(served_new)  # the old one up to some point, the new one from there on
    assert not served_new[0]
    assert served_new[-1]
