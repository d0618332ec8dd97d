"""A loaded bundle holds its index once, and of everything else what was asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from index_builder.bundle import load_bundle
from index_builder.generated_bundle import generate_bundle
from index_builder.publish import Store

NUM_ITEMS = 250_000
DIM = 64
VECTORS_MIB = NUM_ITEMS * DIM * 4 / 2**20

PROGRAM = """
import re, sys, torch, numpy as np
from pathlib import Path
torch.set_num_threads(1)
from index_builder import ann
from index_builder.bundle import load_bundle
ann.set_num_threads(1)

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1)) / 1024

load_bundle(sys.argv[1])  # a small one: what the libraries need
before = peak()
bundle = load_bundle(sys.argv[2])
loaded = peak() - before
users = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
bundle.index.search(users, 100)
assert bundle.item_index_of[bundle.item_ids[249_999]] == 250_000
print(loaded, peak() - before)
"""
"""Prints MiB at the peak, once loaded and once searched. Linux only, as the service is."""


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    store = Store(tmp_path_factory.mktemp("stores") / "large")
    bundle_id = generate_bundle(store, num_items=NUM_ITEMS, dim=DIM, index_kind="flat")
    return Path(store.bundle_url(bundle_id))


def test_loading_reads_nothing_in_and_searching_reads_the_vectors_in_once(large, built):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(built), str(large)], capture_output=True, text=True, check=True
    )
    loaded, searched = map(float, done.stdout.split())
    assert loaded < 0.35 * VECTORS_MIB  # item ids, and the negatives' probabilities
    assert VECTORS_MIB < searched < 1.45 * VECTORS_MIB


def test_a_bundle_may_be_removed_while_it_is_in_use(large, tmp_path):
    import shutil

    copy = Path(shutil.copytree(large, tmp_path / large.name))
    bundle = load_bundle(copy)
    shutil.rmtree(copy)
    users = bundle.item_embeddings[:3].copy()
    assert (bundle.index.search(users, 5)[1] >= 0).all()
    assert bundle.item_ids[7] == "item-7"
