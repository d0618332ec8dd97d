"""A bundle reads back as it was built; one that was touched in any way is refused and the file named."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from index_builder import bundle as bundle_module
from index_builder.bundle import current_bundle, load_bundle
from index_builder.bundle_files import (
    CANARY,
    FILES,
    INDEX,
    ITEM_EMBEDDINGS,
    ITEM_IDS,
    MANIFEST,
    WEIGHTS,
    BundleError,
    check_bundle,
)
from index_builder.canary import replay_canary
from index_builder.candidates import recall_sequences
from index_builder.embedding_file import map_item_embeddings, write_item_embeddings
from index_builder.item_ids import write_item_ids
from model.noise import request_key

FLIPS_PER_FILE = 60
ALL_FILES = (MANIFEST, *FILES)


@pytest.fixture
def copy(built, tmp_path) -> Path:
    """A bundle of one's own to damage."""
    return Path(shutil.copytree(built, tmp_path / built.name))


@pytest.fixture
def no_parsing(monkeypatch):
    """Loading fails this test if it gets as far as parsing anything."""

    def parse(*arguments: object) -> None:
        raise AssertionError("a damaged bundle reached the parsers")

    monkeypatch.setattr(bundle_module, "_parse", parse)


def test_a_bundle_reads_back_as_it_was_built(built, checkpoint):
    bundle = load_bundle(built)
    assert bundle.bundle_id == built.name
    assert bundle.item_ids == checkpoint.item_ids
    assert all(bundle.item_index_of[item_id] == row + 1 for row, item_id in enumerate(bundle.item_ids))
    assert bundle.popular == [checkpoint.item_ids[item - 1] for item in checkpoint.popular]
    assert bundle.model_name == "t2diff"
    assert not bundle.model.training
    assert not any(parameter.requires_grad for parameter in bundle.model.parameters())
    np.testing.assert_array_equal(bundle.item_embeddings, checkpoint.model.item_embeddings().detach().numpy())
    for name, tensor in checkpoint.model.state_dict().items():
        assert torch.equal(tensor, bundle.model.state_dict()[name]), name
    for case, sequence in zip(bundle.canary, checkpoint.canary, strict=True):
        np.testing.assert_array_equal(case.sequence.item_index, sequence.item_index)
        np.testing.assert_array_equal(case.sequence.timestamp, sequence.timestamp)
        assert case.sequence.request_time == sequence.request_time
        assert len(set(case.candidates)) == len(bundle.item_ids)


def test_a_table_that_is_the_item_embeddings_is_stored_and_held_once(built):
    bundle = load_bundle(built)
    table = bundle.model.item_table.weight
    assert bundle.item_embeddings.ctypes.data == table[1:].data_ptr()
    assert bundle.index.embeddings.ctypes.data == table[1:].data_ptr()
    assert (built / ITEM_EMBEDDINGS).stat().st_size < 200


def test_item_embeddings_that_are_no_table_are_stored_themselves(built, tmp_path, checkpoint):
    weights = checkpoint.model.state_dict()
    table = weights["item_table.weight"].numpy()
    for embeddings in (table[1:] * 2, table[2:], table[1:, :4]):
        write_item_embeddings(tmp_path / "file", embeddings, weights)
        found = map_item_embeddings(tmp_path / "file", weights, len(embeddings))
        np.testing.assert_array_equal(found, embeddings)
        assert (tmp_path / "file").stat().st_size > embeddings.nbytes


def test_the_loaded_bundle_answers_as_the_checkpoint_does(built, checkpoint):
    bundle = load_bundle(str(built) + "/")
    keys = [request_key(7, f"user {number}") for number in range(3)]
    found = recall_sequences(bundle.model, bundle.index, checkpoint.canary, keys, top_k=10)
    direct = recall_sequences(checkpoint.model, bundle.index, checkpoint.canary, keys, top_k=10)
    np.testing.assert_array_equal(found.item_index, direct.item_index)
    assert not np.array_equal(found.item_index[0], found.item_index[1])


def test_the_manifest_says_what_the_bundle_is(built, checkpoint):
    manifest = load_bundle(built).manifest
    assert manifest["format_version"] == 3
    assert manifest["model"] == {"name": "t2diff", "config": checkpoint.model_config}
    assert manifest["metric"] == "inner_product"
    assert manifest["dataset_id"] == checkpoint.dataset_id
    assert manifest["counts"]["items"] == 60
    assert manifest["index"]["kind"] == "flat"
    assert manifest["index"]["ann_overlap_at_100"] == 1.0
    assert manifest["offline_metrics"]["validation/recall_at_20"] == 0.3125
    assert manifest["seed"] == checkpoint.seed
    assert "git_commit" in manifest
    assert {"python", "torch", "numpy", "faiss", "safetensors"} <= manifest["libraries"].keys()
    assert all(check["passed"] for check in manifest["checks"])
    assert manifest["files"].keys() == set(FILES)
    for name, entry in manifest["files"].items():
        data = (built / name).read_bytes()
        assert entry == {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert built.name.endswith("-" + hashlib.sha256((built / MANIFEST).read_bytes()).hexdigest()[:8])


@pytest.mark.parametrize("name", ALL_FILES)
def test_any_flipped_bit_is_refused_before_parsing(copy, no_parsing, name):
    rng = random.Random(name)
    path = copy / name
    sound = path.read_bytes()
    positions = [0, 8 * len(sound) - 1, *(rng.randrange(8 * len(sound)) for _ in range(FLIPS_PER_FILE))]
    for position in positions:
        damaged = bytearray(sound)
        damaged[position // 8] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        with pytest.raises(BundleError, match=f"{name}.* is damaged"):
            load_bundle(copy)
        with pytest.raises(BundleError, match=f"{name}.* is damaged"):
            check_bundle(copy)
    path.write_bytes(sound)
    check_bundle(copy)


@pytest.mark.parametrize("name", ALL_FILES)
def test_any_truncation_or_extension_is_refused_before_parsing(copy, no_parsing, name):
    rng = random.Random(name)
    path = copy / name
    sound = path.read_bytes()
    cuts = [0, len(sound) - 1, *(rng.randrange(len(sound)) for _ in range(10))]
    for damaged in [*(sound[:cut] for cut in cuts), sound + b"\x00", sound + sound]:
        path.write_bytes(damaged)
        with pytest.raises(BundleError, match=f"{name}.* is damaged"):
            load_bundle(copy)
        with pytest.raises(BundleError, match=f"{name}.* is damaged"):
            check_bundle(copy)


@pytest.mark.parametrize("name", ALL_FILES)
def test_a_missing_file_is_refused(copy, no_parsing, name):
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        load_bundle(copy)


@pytest.mark.parametrize("name", ["extra.bin", ".DS_Store", "item_ids.json~"])
def test_an_extra_file_is_refused(copy, no_parsing, name):
    (copy / name).write_bytes(b"x")
    with pytest.raises(BundleError, match=f"'{name}' does not belong to a bundle"):
        load_bundle(copy)


def test_an_extra_folder_is_refused(copy, no_parsing):
    (copy / "more").mkdir()
    with pytest.raises(BundleError, match="'more' does not belong to a bundle"):
        load_bundle(copy)


def test_a_link_or_pipe_in_place_of_a_file_is_refused(copy, no_parsing, tmp_path):
    (copy / INDEX).rename(tmp_path / "elsewhere")
    (copy / INDEX).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"cannot read index\.faiss"):
        load_bundle(copy)
    (copy / INDEX).unlink()
    os.mkfifo(copy / INDEX)
    with pytest.raises(BundleError, match=r"index\.faiss is not a plain file"):
        load_bundle(copy)


def test_two_bundles_cannot_swap_a_file(built_bundles, copy):
    shutil.copy(built_bundles[1] / WEIGHTS, copy / WEIGHTS)
    with pytest.raises(BundleError, match=r"model\.safetensors is damaged"):
        load_bundle(copy)


def test_a_renamed_bundle_is_refused(copy, no_parsing):
    for name in ("latest", "20200101T000000Z-00000000", copy.name + "0"):
        renamed = copy.rename(copy.parent / name)
        with pytest.raises(BundleError, match=r"is not a bundle's name|manifest.json is damaged"):
            load_bundle(renamed)
        copy = renamed


def reseal(folder: Path, manifest: object) -> Path:
    """Give a bundle another manifest and the name that goes with it, as an attacker would."""
    data = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    (folder / MANIFEST).write_bytes(data)
    name = folder.name[:-8] + hashlib.sha256(data).hexdigest()[:8]
    return folder.rename(folder.parent / name)


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/passwd", "..", "", "a/b", "model.safetensors/../x"])
def test_a_manifest_that_lists_a_path_outside_is_refused(copy, no_parsing, name):
    manifest = json.loads((copy / MANIFEST).read_bytes())
    manifest["files"][name] = {"size_bytes": 1, "sha256": "0" * 64}
    with pytest.raises(BundleError, match="which no bundle holds"):
        load_bundle(reseal(copy, manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest.update(format_version=1), "format_version 1, this program reads 2 and 3"),
        (lambda manifest: manifest.pop("files"), "is not a manifest"),
        (lambda manifest: manifest.update(files=[]), "is not a manifest"),
        (lambda manifest: manifest["files"].pop(INDEX), "is not a manifest"),
        (
            lambda manifest: manifest["files"][INDEX].update(size_bytes="9"),
            "no valid checksum of index.faiss",
        ),
        (lambda manifest: manifest["files"][INDEX].update(size_bytes=-1), "no valid checksum of index.faiss"),
        (
            lambda manifest: manifest["files"][INDEX].update(size_bytes=True),
            "no valid checksum of index.faiss",
        ),
        (lambda manifest: manifest["files"][INDEX].update(sha256="abc"), "no valid checksum of index.faiss"),
        (lambda manifest: manifest["files"][INDEX].update(sha256=None), "is not a manifest"),
    ],
)
def test_a_manifest_that_is_sealed_but_wrong_is_refused(copy, no_parsing, change, message):
    manifest = json.loads((copy / MANIFEST).read_bytes())
    change(manifest)
    with pytest.raises(BundleError, match=message):
        load_bundle(reseal(copy, manifest))


@pytest.mark.parametrize(
    "data", [b"", b"null", b"\xff", b"[" * 100_000, b'{"format_version": 1}', b"[]", b"7"]
)
def test_a_manifest_that_is_sealed_but_not_ours_is_refused(copy, no_parsing, data):
    with pytest.raises(BundleError, match="is not a manifest"):
        load_bundle(reseal(copy, data))


def replace_file(folder: Path, name: str, data: bytes) -> Path:
    """Put other content into a bundle and seal it anew."""
    (folder / name).write_bytes(data)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest["files"][name] = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return reseal(folder, manifest)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("data", [b"", b"not what it should be", b"[1]", b"\x08" + b"\x00" * 7 + b"{}      "])
def test_sealed_nonsense_is_a_bundle_error_that_names_the_file(copy, name, data):
    with pytest.raises(BundleError, match=f"{name} cannot be used"):
        load_bundle(replace_file(copy, name, data))


def test_parts_that_do_not_fit_are_refused(copy, tmp_path):
    write_item_ids(tmp_path / "fewer", [f"film-{number}" for number in range(59)])
    with pytest.raises(BundleError, match=r"item_rows\.safetensors cannot be used: .* a vocabulary of 59"):
        load_bundle(replace_file(copy, ITEM_IDS, (tmp_path / "fewer").read_bytes()))


def test_repeated_item_ids_are_refused(copy):
    path = copy / ITEM_IDS
    with pytest.raises(BundleError, match="item ids must be distinct strings"):
        load_bundle(replace_file(copy, ITEM_IDS, path.read_bytes().replace(b"film-11", b"film-10")))


def test_an_unknown_popular_item_is_refused(copy):
    with pytest.raises(BundleError, match="popular item 'nowhere' is not among the item ids"):
        load_bundle(replace_file(copy, "popular.json", b'["nowhere"]'))


def test_the_canary_notices_another_models_weights(built_bundles, copy):
    other = (built_bundles[1] / WEIGHTS).read_bytes()
    mixed = load_bundle(replace_file(copy, WEIGHTS, other))  # sealed: all checksums are right
    with pytest.raises(BundleError, match="canary-0 does not give its recorded answer"):
        replay_canary(mixed.model, mixed.index, mixed.item_ids, mixed.canary)


def test_a_canary_that_was_edited_does_not_replay(copy):
    cases = json.loads((copy / CANARY).read_bytes())
    cases[1]["candidates"][:2] = cases[1]["candidates"][59:57:-1]
    bundle = load_bundle(replace_file(copy, CANARY, json.dumps(cases).encode()))
    with pytest.raises(BundleError, match="canary-1 does not give its recorded answer"):
        replay_canary(bundle.model, bundle.index, bundle.item_ids, bundle.canary)


def test_without_verification_names_and_sizes_are_still_checked(copy):
    path = copy / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"model\.safetensors is damaged, its size"):
        load_bundle(copy, verify=False)


def test_a_bundle_that_is_not_there_is_a_bundle_error(tmp_path):
    with pytest.raises(BundleError, match="no bundle at"):
        load_bundle(tmp_path / "20200101T000000Z-00000000")
    with pytest.raises(BundleError, match="no bundle at memory://nowhere/20200101T000000Z-00000000"):
        load_bundle("memory://nowhere/20200101T000000Z-00000000")
    with pytest.raises(BundleError, match="cannot open store 'nonsense://x'"):
        load_bundle("nonsense://x/20200101T000000Z-00000000")


@pytest.fixture
def remote(built):
    """The bundle in an in-memory object store."""
    memory = fsspec.filesystem("memory")
    for path in built.iterdir():
        memory.pipe_file(f"/bucket/bundles/{built.name}/{path.name}", path.read_bytes())
    memory.pipe_file("/bucket/bundles/CURRENT", f"{built.name}\n".encode())
    yield "memory://bucket/bundles"
    memory.rm("/bucket", recursive=True)


def test_a_remote_bundle_is_downloaded_verified_and_loaded(remote, built, tmp_path):
    url = current_bundle(remote)
    assert url == f"{remote}/{built.name}"
    bundle = load_bundle(url, cache_dir=tmp_path)
    replay_canary(bundle.model, bundle.index, bundle.item_ids, bundle.canary)
    assert bundle.bundle_id == built.name
    assert list(tmp_path.iterdir()) == []  # nothing of the download stays


def test_a_damaged_remote_bundle_is_refused(remote, built, no_parsing):
    memory = fsspec.filesystem("memory")
    path = f"/bucket/bundles/{built.name}/{INDEX}"
    sound = memory.cat_file(path)
    memory.pipe_file(path, sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(BundleError, match=r"index\.faiss is damaged"):
        load_bundle(current_bundle(remote))
    memory.pipe_file(path, sound)
    memory.pipe_file(f"/bucket/bundles/{built.name}/more/file", b"x")
    with pytest.raises(BundleError, match="'more/file' does not belong to a bundle"):
        load_bundle(current_bundle(remote))
