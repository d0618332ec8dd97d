"""Bundles gone wrong between the builder and the disk: what only loading them can show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from index_builder.ann import build_index
from index_builder.bundle_files import INDEX, MANIFEST, read_manifest, seal
from loadtest.stress.gate_bad_parts import canary_of
from loadtest.stress.gate_ground import BadBuild, Ground
from loadtest.stress.gate_nights import write_parts
from model.registry import MODELS


def wrong_dimension_in_the_manifest(ground: Ground, folder: Path) -> BadBuild:
    """The manifest speaks of another embedding."""
    counts = {"items": len(ground.good.item_ids), "embedding_dim": 8}
    return BadBuild(write_parts(ground.good, folder, manifest={"counts": counts}), ground.night)


def swapped_metric(ground: Ground, folder: Path) -> BadBuild:
    """An index by distance beside a model that compares by inner product."""
    index = build_index(ground.good.embeddings, kind="flat_fp16", metric="l2")
    parts = replace(ground.good, index=index, metric="l2", canary=canary_of(ground))
    return BadBuild(write_parts(parts, folder), ground.night)


def index_of_another_dimension(ground: Ground, folder: Path) -> BadBuild:
    index = build_index(ground.good.embeddings[:, :8].copy(), kind="flat_fp16")
    return BadBuild(
        write_parts(replace(ground.good, index=index, canary=canary_of(ground)), folder), ground.night
    )


def garbled_index(ground: Ground, folder: Path) -> BadBuild:
    """Bytes that no checksum can refuse, for they were garbled before they were sealed."""
    path = write_parts(ground.good, folder)
    manifest = read_manifest(path)
    data = bytearray((path / INDEX).read_bytes())
    data[:4] = b"\x00\x00\x00\x00"
    (path / INDEX).write_bytes(bytes(data))
    (path / MANIFEST).unlink()
    kept = {key: manifest[key] for key in manifest if key not in ("format_version", "created", "files")}
    return BadBuild(path.rename(folder / seal(path, kept)), ground.night)


def model_unknown_elsewhere(ground: Ground, folder: Path) -> BadBuild:
    """A first night's model that only the builder's process knows, as one registered by a script."""
    MODELS["of_this_process"] = MODELS["t2diff"]
    path = write_parts(replace(ground.good, model_name="of_this_process"), folder)
    return BadBuild(path, ground.night, against_last=False)
