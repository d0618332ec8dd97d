"""Signed bundles: what is not signed with the key is neither published nor loaded; no name leaves a store."""

from __future__ import annotations

import hashlib
import hmac
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from index_builder.bundle import load_bundle
from index_builder.bundle_files import MANIFEST, BundleError
from index_builder.publish import Store
from index_builder.signature import SIGNATURE, SignatureKeyError, is_signed, read_keys, sign
from index_builder.storage import StoreError

OLD, NEW, OTHER = b"old-key-" * 4, b"new-key-" * 4, b"not-ours" * 4


@pytest.fixture
def store(built_bundles: list[Path], tmp_path: Path) -> Path:
    """A store with a bundle that is signed with the old key and one that is not; none is published."""
    url = tmp_path / "bundles"
    for number, path in enumerate(built_bundles[:2]):
        shutil.copytree(path, tmp_path / "staging" / path.name)
        url.mkdir(exist_ok=True)
        Store(url, keys=[[OLD], []][number]).add(tmp_path / "staging" / path.name)
    return url


@pytest.fixture
def signed(store: Path) -> str:
    return next(name for name in Store(store).bundle_ids() if (store / name / SIGNATURE).exists())


@pytest.fixture
def unsigned(store: Path) -> str:
    return next(name for name in Store(store).bundle_ids() if not (store / name / SIGNATURE).exists())


def test_the_signature_is_an_hmac_of_the_manifest(store: Path, signed: str) -> None:
    manifest = (store / signed / MANIFEST).read_bytes()
    expected = hmac.new(OLD, b"t2diff bundle manifest, version 1\n" + manifest, hashlib.sha256).hexdigest()
    assert (store / signed / SIGNATURE).read_text() == f"hmac-sha256 {expected}\n"


def test_a_signed_bundle_is_published_and_loaded_with_its_key_and_without_any(
    store: Path, signed: str
) -> None:
    for keys in ([OLD], [NEW, OLD], []):
        Store(store, keys=keys).publish(signed)
        assert load_bundle(store / signed, keys=keys).bundle_id == signed


def test_an_unsigned_bundle_is_refused_where_a_key_is_set(store: Path, unsigned: str) -> None:
    with pytest.raises(BundleError, match=f"bundle {unsigned} is not signed, and signature_key is set: sign"):
        Store(store, keys=[OLD]).publish(unsigned)
    with pytest.raises(BundleError, match="is not signed, and signature_key is set"):
        load_bundle(store / unsigned, keys=[OLD])
    with pytest.raises(BundleError, match="is not signed, and signature_key is set"):
        load_bundle(store / unsigned, keys=[OLD], verify=False)
    assert Store(store).current() is None


@pytest.mark.parametrize("damage", ["another key", "empty", "cut", "of another bundle", "a link"])
def test_a_wrong_signature_is_refused(store: Path, signed: str, damage: str) -> None:
    path = store / signed / SIGNATURE
    right = path.read_bytes()
    if damage == "a link":
        path.unlink()
        path.symlink_to(store.parent / "elsewhere")
        (store.parent / "elsewhere").write_bytes(right)
    else:
        manifest = (store / signed / MANIFEST).read_bytes()
        wrong = {"another key": sign(manifest, OTHER), "empty": b"", "cut": right[:-2]}
        path.write_bytes(wrong.get(damage, sign(manifest + b" ", OLD)))
    with pytest.raises(BundleError, match=signed):
        Store(store, keys=[OLD]).publish(signed)
    with pytest.raises(BundleError, match=signed):
        load_bundle(store / signed, keys=[OLD])


def test_rolling_back_to_an_unsigned_bundle_is_refused(store: Path, signed: str, unsigned: str) -> None:
    Store(store).publish(unsigned)
    Store(store, keys=[OLD]).publish(signed)
    with pytest.raises(BundleError, match="is not signed"):
        Store(store, keys=[OLD]).rollback()
    assert Store(store).current() == signed


def test_a_bundle_that_is_there_already_can_be_signed_once_it_was_verified(
    store: Path, unsigned: str
) -> None:
    with pytest.raises(SignatureKeyError, match="--signature-key"):
        Store(store).sign(unsigned)
    Store(store, keys=[NEW]).sign(unsigned)
    Store(store, keys=[OLD, NEW]).publish(unsigned)
    assert [
        path.name for path in store.iterdir() if path.name.startswith(".") and path.suffix == ".new"
    ] == []
    (store / unsigned / "popular.json").write_bytes(b"[]")
    with pytest.raises(BundleError, match=r"popular\.json is damaged"):
        Store(store, keys=[NEW]).sign(unsigned)


def test_keys_are_the_lines_of_a_file_and_must_be_long(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert read_keys(None) == ()
    path.write_bytes(OLD + b"\n\n  " + NEW + b"\r\n")
    assert read_keys(path) == (OLD, NEW)
    assert is_signed(b"m", sign(b"m", NEW), read_keys(path))
    for content in (b"", b"\n", b"short\n", OLD + b"\nshort"):
        path.write_bytes(content)
        with pytest.raises(SignatureKeyError, match="at least 32 characters") as refused:
            read_keys(path)
        assert "short" not in str(refused.value)
    with pytest.raises(SignatureKeyError, match=r"cannot read .*/missing"):
        read_keys(tmp_path / "missing")


def test_the_commands_take_the_key_file(store: Path, signed: str, unsigned: str, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(OLD)

    def command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "index_builder.cli", *words],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )

    refused = command("publish", str(store), unsigned, "--signature-key", str(key))
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: bundle {unsigned} is not signed, and signature_key is set")
    assert command("sign", str(store), unsigned, T2DIFF_SIGNATURE_KEY=str(key)).returncode == 0
    assert command("publish", str(store), unsigned, T2DIFF_SIGNATURE_KEY=str(key)).returncode == 0
    assert Store(store).current() == unsigned


NAMES = ["../outside", "..", ".", "", "/etc", "a/../../outside", "20261122T000000Z-00000000/../../outside"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_cannot_leave_the_store(store: Path, signed: str, name: str) -> None:
    outside = Path(shutil.copytree(store / signed, store.parent / "outside"))
    with pytest.raises((StoreError, BundleError)):
        Store(store).publish(name)
    with pytest.raises((StoreError, BundleError)):
        Store(store).rollback(name or "..")
    with pytest.raises(BundleError):
        load_bundle(Store(store).bundle_url(name))
    (store / "CURRENT").write_text(f"{name}\n")
    with pytest.raises(BundleError, match="damaged"):
        Store(store).current()
    assert outside.exists()


def test_a_link_in_place_of_a_bundle_is_none(store: Path, signed: str) -> None:
    (store / signed).rename(store.parent / signed)
    (store / signed).symlink_to(store.parent / signed)
    assert signed not in Store(store).bundle_ids()
    with pytest.raises(StoreError, match="no bundle"):
        Store(store).publish(signed)
    with pytest.raises(BundleError, match="is a link"):
        load_bundle(store / signed)
