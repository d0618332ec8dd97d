"""Kinds of index against exhaustive search: time, overlap, memory, and what building takes.

Every kind is tuned to the asked overlap on half of the user embeddings and measured with the other half.
All of one corpus are timed in turns within one process, so that what else the machine does hits all alike;
ratios are what to read. Memory is that of a fresh process that opens the saved index and searches it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from index_builder.ann import KINDS, AnnIndex, build_index
from index_builder.index_choice import choose_kind
from index_builder.mapped_tensors import write_tensors
from index_builder.overlap import ann_overlap, tune
from model.two_tower import Metric

BATCH_SIZES = (1, 32)
DEFAULT_SIZES = (3_706, 108_000, 1_000_000)
MAX_ITEMS = {"hnsw": 200_000, "torch": 2_000_000}
"""Left out above: a graph of a million items takes minutes to build and lost at every size measured."""

_ROUNDS = 12
_MAX_SECONDS_PER_ROUND = 1.0
_GIB = 1 << 30


@dataclass(frozen=True)
class Corpus:
    """What is searched, and by whom.   items: (M, D)   users: (Q, D), Q at least 2"""

    label: str
    items: np.ndarray
    users: np.ndarray
    metric: Metric = "inner_product"


@dataclass
class Measurement:
    """One kind on one corpus.

    us_per_query: by batch size, median   over_flat: by batch size, how many times as fast as `flat`
    file_gib: the saved index and, where it reads them, the item embeddings   rss_gib: of a fresh process that
    searched it, less what that process needs without
    """

    label: str
    num_items: int
    kind: str
    chosen: bool
    width: int
    rescored: int
    overlap: float
    build_seconds: float
    tune_seconds: float
    file_gib: float
    rss_gib: float
    us_per_query: dict[int, float] = field(default_factory=dict)
    over_flat: dict[int, float] = field(default_factory=dict)


def measure_corpus(
    corpus: Corpus,
    *,
    kinds: Collection[str],
    top_k: int,
    target_overlap: float,
    report: Callable[[str], None] = lambda stage: None,
) -> list[Measurement]:
    """Build, tune, measure; `flat` is always the first.   report: called with what begins"""
    chosen = choose_kind(len(corpus.items), target_overlap=target_overlap)
    indexes, measured = [], []
    for kind in ["flat", *(kind for kind in kinds if kind != "flat")]:
        if not KINDS[kind].min_items <= len(corpus.items) <= MAX_ITEMS.get(kind, len(corpus.items)):
            continue
        report(f"{corpus.label}: {kind}")
        started = time.perf_counter()
        index = build_index(corpus.items, kind=kind, metric=corpus.metric)
        built = time.perf_counter()
        tune(index, corpus.users[::2], target_overlap=target_overlap, top_k=top_k)
        tuned = time.perf_counter()
        file_gib, rss_gib = _memory(index, corpus, top_k)
        indexes.append(index)
        measured.append(
            Measurement(
                label=corpus.label,
                num_items=len(corpus.items),
                kind=kind,
                chosen=kind == chosen,
                width=index.width,
                rescored=index.rescored,
                overlap=ann_overlap(index, corpus.items, corpus.users[1::2], top_k),
                build_seconds=built - started,
                tune_seconds=tuned - built,
                file_gib=file_gib,
                rss_gib=rss_gib,
            )
        )
    for batch_size in BATCH_SIZES:
        report(f"{corpus.label}: timing batches of {batch_size}")
        for entry, microseconds in zip(
            measured, _times(indexes, corpus.users[1::2], top_k, batch_size), strict=True
        ):
            entry.us_per_query[batch_size] = microseconds
            entry.over_flat[batch_size] = measured[0].us_per_query[batch_size] / microseconds
    return measured


def _times(indexes: list[AnnIndex], users: np.ndarray, top_k: int, batch_size: int) -> list[float]:
    """Median microseconds per query of each index, all taking turns.   users: (Q, D)"""
    taken: list[list[float]] = [[] for _ in indexes]
    for turn in range(_ROUNDS):
        for index, seconds in zip(indexes, taken, strict=True):
            spent, start = 0.0, (turn * batch_size) % max(1, len(users) - batch_size + 1)
            while spent < _MAX_SECONDS_PER_ROUND / len(indexes):
                batch = np.take(users, range(start, start + batch_size), axis=0, mode="wrap")
                begun = time.perf_counter()
                index.search(batch, top_k)
                one = time.perf_counter() - begun
                seconds.append(one / batch_size * 1e6)
                spent, start = spent + one, start + batch_size
    return [float(np.median(seconds)) for seconds in taken]


def _memory(index: AnnIndex, corpus: Corpus, top_k: int) -> tuple[float, float]:
    """Size on disk of what is searched, and what a process that searches it holds, both in GiB."""
    with tempfile.TemporaryDirectory(prefix="t2diff-bench-") as name:
        folder = Path(name)
        index.save(folder / "index.faiss")
        write_tensors(folder / "embeddings", {"items": corpus.items, "users": corpus.users})
        size_bytes = (folder / "index.faiss").stat().st_size
        if not index.holds_items or index.rescored:
            size_bytes += corpus.items.nbytes
        arguments = [str(folder), index.kind, index.metric, str(index.rescored), str(top_k)]
        done = subprocess.run(
            [sys.executable, "-m", "index_builder.memory_probe", *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
        return size_bytes / _GIB, int(done.stdout) / _GIB
