"""Exact top-K on a GPU: in a CUDA graph by torch against FAISS, and what FAISS does with exclusions.

Not run: no GPU was at hand when this was written.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from index_builder.faiss_library import FAISS_VERSION, faiss, num_gpus
from index_builder.gpu_index import to_gpu
from loadtest.gpu_timing import Call, Clock, medians
from model.engines.gpu.masked_search import masked_top_k

TOP_K = 100
CORPORA = (3_706, 108_000, 1_000_000)
BATCH_SIZES = (1, 256)
_DIM = 64
_NUM_EXCLUDED = 64


def search_figures(clock: Clock, *, rounds: int, num_items: int) -> dict[str, Any]:
    """Milliseconds a query of both, and whether they agree, for one corpus."""
    torch.manual_seed(0)
    table = torch.randn(num_items + 1, _DIM, device="cuda")
    index, resources = _faiss_index(table[1:].cpu().numpy())
    figures: dict[str, Any] = {}
    for size in BATCH_SIZES:
        user = torch.randn(size, 1, _DIM, device="cuda")
        calls = {"graph": _captured_search(table, user)}
        if index is not None:
            queries = user[:, 0].cpu().numpy()
            calls["faiss"] = functools.partial(index.search, queries, TOP_K)
        for name, ms in medians(calls, clock, rounds=rounds).items():
            figures[f"ms_per_query_{name}_top{TOP_K}_{num_items}_b{size}"] = ms / size
    if index is not None:
        figures |= _agreement(index, table, num_items)
    del index, resources  # the index first
    return figures


def faiss_facts() -> dict[str, Any]:
    """Which FAISS there is, and whether its GPU index honours an `IDSelector`."""
    facts: dict[str, Any] = {"faiss": FAISS_VERSION, "faiss_gpus": num_gpus()}
    if num_gpus() == 0:
        return facts
    vectors = np.random.default_rng(0).standard_normal((1_000, _DIM)).astype(np.float32)
    index, resources = _faiss_index(vectors)
    try:
        without = faiss.IDSelectorNot(faiss.IDSelectorBatch(np.arange(500)))
        _, rows = index.search(vectors[:8], 10, params=faiss.SearchParameters(sel=without))
        facts["faiss_gpu_id_selector"] = "honoured" if rows.min() >= 500 else "ignored"
    except (RuntimeError, AssertionError) as error:
        facts["faiss_gpu_id_selector"] = f"refused: {str(error).splitlines()[0]}"
    del index, resources
    return facts


def _faiss_index(embeddings: np.ndarray) -> tuple[Any, Any]:
    """A flat index on the GPU and what it lives from, or nothing without FAISS's GPU build."""
    if num_gpus() == 0:
        return None, None
    return to_gpu(None, embeddings, kind="flat", metric="inner_product", device="cuda:0")


def _captured_search(table: torch.Tensor, user: torch.Tensor) -> Call:
    """The search of masked_search.py as a graph.   table: (M + 1, D)   user: (B, 1, D)"""
    exclude = torch.randint(1, len(table), (len(user), _NUM_EXCLUDED), device="cuda")
    search: Callable[[], Any] = functools.partial(masked_top_k, user, table, exclude, TOP_K)
    with torch.inference_mode():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            search()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = search()

    def replay(kept: Any = kept) -> None:
        graph.replay()

    return replay


def _agreement(index: Any, table: torch.Tensor, num_items: int) -> dict[str, float]:
    """The share of torch's exact top-K that FAISS's exact index returns too."""
    user = torch.randn(32, 1, _DIM, device="cuda")
    _, items = masked_top_k(user, table, torch.zeros(32, 1, dtype=torch.int64, device="cuda"), TOP_K)
    _, rows = index.search(user[:, 0].cpu().numpy(), TOP_K)
    pairs = zip(items.cpu().numpy() - 1, rows, strict=True)
    shared = [len(set(ours.tolist()) & set(theirs.tolist())) for ours, theirs in pairs]
    return {f"faiss_overlap_top{TOP_K}_{num_items}": float(np.mean(shared)) / TOP_K}
