"""A store in object storage over real HTTP: no update lost, nothing half visible, interruptions clean."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import fsspec
import pytest

from index_builder.bundle import current_bundle, load_bundle
from index_builder.bundle_files import MANIFEST, BundleError
from index_builder.pointer import read_pointer, write_pointer
from index_builder.publish import Store
from index_builder.storage import ConflictError, StoreError, open_storage
from tests import forked

PROGRAM = [sys.executable, "-c", "from index_builder.cli import main; main()"]
PUBLISH = """
import shutil, sys
from pathlib import Path
from index_builder.publish import Store

store, bundle = Store(sys.argv[1]), Path(sys.argv[2])
with store.staging() as staging:
    store.add(Path(shutil.copytree(bundle, staging / bundle.name)))
store.publish(bundle.name)
"""
"""What a build does once the bundle is sealed."""

NUM_KILLS = 12


def t2diff_index(*arguments: object) -> subprocess.CompletedProcess[str]:
    return forked.run([*PROGRAM, *arguments], timeout=120)


def test_every_command_works_on_s3(s3_url, checkpoint_path):
    ids = []
    for _ in range(2):
        built = t2diff_index("build", checkpoint_path, "--out", s3_url)
        assert built.returncode == 0, built.stderr
        ids.append(built.stdout.splitlines()[0].split()[1])
    # Two bundles of one second stand in any order: their names carry whole seconds.
    listed = {line.split()[0]: line for line in t2diff_index("list", s3_url).stdout.splitlines()[1:]}
    assert {name for name in ids if "current" in listed[name]} == {ids[1]}
    assert "verified    yes" in t2diff_index("verify", s3_url).stdout
    assert t2diff_index("rollback", s3_url).stdout == f"rolled back from {ids[1]} to {ids[0]}\n"
    assert t2diff_index("publish", s3_url, ids[1]).stdout == f"published {ids[1]}\n"
    pruned = t2diff_index("prune", s3_url, "--keep", 1, "--younger-than", "0d", "--dry-run")
    assert pruned.stdout == "kept 2, would remove 0 and 0 leftovers\n"


def test_two_publishers_cannot_lose_each_others_update(s3_url, fill, built_bundles):
    _, (a, b, c, d) = fill(s3_url, built_bundles)
    one, other = open_storage(s3_url), open_storage(s3_url)
    for first in (a, b):  # once without a pointer, once with one
        with one.lock():
            history = read_pointer(one)
            with other.lock():
                write_pointer(other, [first, *read_pointer(other)])
            with pytest.raises(ConflictError, match=r"CURRENT of store .* was replaced by another process"):
                write_pointer(one, [c, *history])
    Store(s3_url).publish(d)
    assert Store(s3_url).history() == [d, b, a]


def test_a_publication_that_meets_another_is_done_after_it(s3_url, fill, built_bundles, connect, connection):
    connect(connection.server_url)
    other = open_storage(s3_url)
    connect(connection.url)
    store, (a, b, *_) = fill(s3_url, built_bundles)
    store.publish(a)
    connection.before(rb"PUT \S+/CURRENT ", lambda: write_pointer(other, [b, a]))
    c = built_bundles[2].name
    store.publish(c)
    assert store.history() == [c, b, a]


def test_a_put_whose_answer_got_lost_is_no_conflict(s3_url, fill, built_bundles, connection):
    store, (a, *_) = fill(s3_url, built_bundles[:1])
    storage = open_storage(s3_url)
    with storage.lock():
        assert storage.read("CURRENT") is None
        connection.reset()
        connection.at_received(100, connection.drop)  # 25 bytes are "100 Continue"; then it has written
        storage.replace("CURRENT", f"{a}\n".encode())
    assert connection.num_received > 0
    assert store.current() == a


def test_a_half_uploaded_bundle_is_not_there(s3_url, fill, built_bundles):
    store, (a, b) = fill(s3_url, built_bundles[:2])
    store.publish(a)
    file_system, root = fsspec.core.url_to_fs(s3_url)
    file_system.rm_file(f"{root}/{b}/{MANIFEST}")
    assert store.bundle_ids() == [a]
    assert [summary.bundle_id for summary in store.summaries()] == [a]
    with pytest.raises(StoreError, match=f"no bundle '{b}' in store"):
        store.publish(b)
    with pytest.raises(BundleError, match="no bundle at s3://"):
        load_bundle(store.bundle_url(b))
    fill(s3_url, built_bundles[1:2])  # the same upload, begun again
    store.publish(b)


def test_a_publisher_killed_at_any_moment_leaves_a_complete_bundle_served(
    s3_url, fill, built_bundles, connection
):
    """SIGKILL after every so many bytes that it sent, in the middle of objects and between them."""
    store, (old,) = fill(s3_url, built_bundles[:1])
    store.publish(old)
    new = built_bundles[1]

    def run(kill_at: int | None) -> int:
        connection.reset()
        process = forked.start([sys.executable, "-c", PUBLISH, s3_url, new], stderr=subprocess.PIPE)
        if kill_at is not None:
            connection.at_sent(kill_at, lambda: os.kill(process.pid, signal.SIGKILL))
        _, errors = process.communicate(timeout=120)
        assert process.returncode == (0 if kill_at is None else -signal.SIGKILL), errors
        return connection.num_sent

    def forget() -> None:
        file_system, root = fsspec.core.url_to_fs(s3_url)
        file_system.invalidate_cache()
        for path in file_system.find(f"{root}/{new.name}"):
            file_system.rm_file(path)
        write_pointer(open_storage(s3_url), [old])

    num_bytes = run(None)
    assert store.current() == new.name
    seen = set()
    for number in range(NUM_KILLS):
        forget()
        run(1 + number * (num_bytes - 1) // NUM_KILLS)
        connection.reset()
        served, listed = store.current(), store.bundle_ids()
        seen.add((served == new.name, new.name in listed))
        assert served in listed
        for bundle_id in listed:
            store.check(bundle_id)
    assert (False, False) in seen
    forget()
    run(None)
    assert store.current() == new.name


def test_an_interrupted_download_is_refused_and_leaves_nothing(
    s3_url, fill, built_bundles, connection, tmp_path
):
    store, (a,) = fill(s3_url, built_bundles[:1])
    store.publish(a)
    connection.reset()
    load_bundle(current_bundle(s3_url), cache_dir=tmp_path)
    num_bytes = connection.num_received
    for share in (0.2, 0.5, 0.8):
        connection.reset()
        connection.at_received(int(share * num_bytes), connection.cut)
        with pytest.raises(BundleError, match="cannot read bundle s3://"):
            load_bundle(f"{s3_url}/{a}", cache_dir=tmp_path)
        assert list(tmp_path.iterdir()) == []
    connection.reset()
    assert load_bundle(current_bundle(s3_url), cache_dir=tmp_path).bundle_id == a


def test_a_short_break_does_not_spoil_a_download(s3_url, fill, built_bundles, connection):
    store, (a,) = fill(s3_url, built_bundles[:1])
    connection.reset()
    connection.at_received(20_000, connection.drop)
    assert load_bundle(store.bundle_url(a)).bundle_id == a


def test_a_bundle_removed_during_its_download_is_refused(s3_url, fill, built_bundles, connection):
    store, (a, b, c) = fill(s3_url, built_bundles[:3])
    store.publish(a)
    store.publish(b)
    connection.reset()
    load_bundle(store.bundle_url(c))
    half = connection.num_received // 2
    connection.reset()
    connection.at_received(half, lambda: assert_removed(store, c))
    with pytest.raises(BundleError, match=f"bundle {c}: .* vanished while it was read"):
        load_bundle(store.bundle_url(c))
    assert store.bundle_ids() == sorted((a, b), reverse=True)


def assert_removed(store: Store, bundle_id: str) -> None:
    """Removes a bundle from another process, as a prune on another machine does."""
    program = "import sys; from index_builder.publish import Store; Store(sys.argv[1]).remove([sys.argv[2]])"
    assert forked.run([sys.executable, "-c", program, store.url, bundle_id], timeout=60).returncode == 0


def test_what_a_killed_reader_downloaded_goes_with_the_next_download(
    s3_url, fill, built_bundles, connection, tmp_path
):
    _, (a,) = fill(s3_url, built_bundles[:1])
    program = "import sys; from pathlib import Path; from index_builder.storage import open_storage\n"
    program += "with open_storage(sys.argv[1]).local_copy(sys.argv[2], Path(sys.argv[3])): pass"
    connection.reset()
    process = forked.start([sys.executable, "-c", program, s3_url, a, tmp_path])
    connection.at_received(30_000, lambda: os.kill(process.pid, signal.SIGKILL))
    assert process.wait(60) == -signal.SIGKILL
    connection.reset()
    (abandoned,) = tmp_path.iterdir()
    with open_storage(s3_url).local_copy(a, tmp_path):
        assert abandoned.exists()  # too young: its owner might just be about to lock it
    os.utime(abandoned, (0, 0))
    with open_storage(s3_url).local_copy(a, tmp_path) as living:
        assert not abandoned.exists()
        os.utime(living.parent, (0, 0))
        with open_storage(s3_url).local_copy(a, tmp_path):
            assert living.exists()  # as old, but somebody owns it
    assert list(tmp_path.iterdir()) == []


def test_the_upload_of_a_large_file_killed_between_its_parts_is_found(s3_url, connection, tmp_path):
    name = "20261122T031500Z-1a2b3c4d"
    folder = tmp_path / name
    folder.mkdir()
    (folder / MANIFEST).write_bytes(b"{}")
    with (folder / "large").open("wb") as large:
        large.truncate(110 * 2**20)  # S3 takes it in parts
    program = "import sys; from pathlib import Path; from index_builder.storage import open_storage\n"
    program += "open_storage(sys.argv[1]).add(Path(sys.argv[2]), Path(sys.argv[2]).name)"
    command = [sys.executable, "-c", program, s3_url, str(folder)]
    process = forked.start(command)
    connection.at_sent(60 * 2**20, lambda: os.kill(process.pid, signal.SIGKILL))
    assert process.wait(120) == -signal.SIGKILL
    connection.reset()
    storage = open_storage(s3_url)
    assert storage.folder_names() == []
    (leftover,) = storage.leftovers(0.0)
    assert leftover.startswith(f"{name}/large upload ")
    storage.remove_leftover(leftover)
    assert storage.leftovers(0.0) == []
    assert forked.run(command, timeout=120).returncode == 0
    assert storage.folder_names() == [name]
    file_system, root = fsspec.core.url_to_fs(s3_url)
    assert file_system.info(f"{root}/{name}/large", refresh=True)["size"] == 110 * 2**20


@pytest.mark.parametrize("command", ["list", "publish"])
def test_an_unreachable_server_is_one_line_without_secrets(s3_url, connection, command):
    connection.cut()
    done = t2diff_index(command, s3_url, *(["x"] if command == "publish" else []))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: cannot use store {s3_url}: ")
    assert done.stderr.count("\n") == 1
    assert "test-secret" not in done.stderr


def test_missing_credentials_and_buckets_are_said(s3_url, monkeypatch, built_bundles, checkpoint_path):
    missing = t2diff_index("build", checkpoint_path, "--out", "s3://no-such-bucket/store")
    assert missing.returncode == 2
    assert "make the bucket first" in missing.stderr.splitlines()[-1]
    assert "Traceback" not in missing.stderr
    assert (
        "no bundle store at s3://no-such-bucket/store"
        in t2diff_index("list", "s3://no-such-bucket/store").stderr
    )
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    nobody = t2diff_index("list", s3_url)
    assert nobody.returncode == 1
    assert "credentials" in nobody.stderr
    assert nobody.stderr.count("\n") == 1


def test_nothing_secret_is_logged_even_when_everything_is(s3_url, fill, built_bundles, monkeypatch):
    store, (a,) = fill(s3_url, built_bundles[:1])
    store.publish(a)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "test-token")
    program = "import logging, sys; logging.basicConfig(level=logging.DEBUG)\n"
    program += "from index_builder.publish import Store; print(Store(sys.argv[1]).current())"
    done = forked.run([sys.executable, "-c", program, s3_url], timeout=60)
    assert done.returncode == 0, done.stderr
    assert a in done.stdout
    assert "DEBUG" in done.stderr  # it is on
    for secret in ("test-secret", "test-token", "Signature"):
        assert secret not in done.stderr


def test_a_url_with_a_password_is_refused_and_not_repeated():
    with pytest.raises(StoreError, match="must not hold a password") as refusal:
        Store("ftp://user:hunter2@host/store")
    assert "hunter2" not in str(refusal.value)
