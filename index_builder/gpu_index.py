"""FAISS on a GPU. Not run: no GPU was at hand when this was written; `tests/index_builder` runs it on one.

A GPU index is no thread-safe object, reads included, answers at most 2,048 results a query, and without
cuVS it ignores `IDSelector` silently: the caller over-fetches.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from index_builder.faiss_library import faiss, faiss_metric, has_cagra, num_gpus
from model.two_tower import Metric

MAX_FETCH = 2_048
"""FAISS's own limit for k, and for nprobe."""

_LOGGER = logging.getLogger(__name__)


def usable_device(device: str, kind: str, *, on_gpu: bool) -> str:
    """`device`, or the CPU with a warning that says why. Raises ValueError for anything but cpu and cuda.

    on_gpu: whether a GPU has this kind at all
    """
    asked = torch.device(device)
    if asked.type == "cpu":
        return "cpu"
    if asked.type != "cuda":
        raise ValueError(f"the index runs on cpu or cuda, got device {device!r}")
    if kind == "torch":
        reason = None if torch.cuda.is_available() else "torch sees no GPU"
    elif not hasattr(faiss, "StandardGpuResources"):
        reason = "this FAISS has no GPU support (the extra [gpu] in place of [cpu] brings it)"
    elif num_gpus() <= (asked.index or 0):
        reason = f"FAISS sees {num_gpus()} GPUs"
    else:
        reason = None if on_gpu else f"index kind {kind!r} exists on the CPU only"
    if reason is None:
        return f"cuda:{asked.index or 0}"
    _LOGGER.warning("device %s was asked for, the index runs on the CPU: %s", device, reason)
    return "cpu"


def to_gpu(index: Any, embeddings: np.ndarray, *, kind: str, metric: Metric, device: str) -> tuple[Any, Any]:
    """The index on the GPU, and the resources that it lives from.   embeddings: (M, D)"""
    resources = faiss.StandardGpuResources()
    number = torch.device(device).index
    if kind in ("flat", "flat_fp16"):
        config = faiss.GpuIndexFlatConfig()
        config.device = number
        config.useFloat16 = kind == "flat_fp16"
        on_gpu = faiss.GpuIndexFlat(resources, embeddings.shape[1], faiss_metric(metric), config)
        on_gpu.add(np.ascontiguousarray(embeddings))
        return on_gpu, resources
    if kind == "cagra":
        on_gpu = faiss.GpuIndexCagra(resources, index.d, index.metric_type)
        on_gpu.copyFrom(index)
        return on_gpu, resources
    return faiss.index_cpu_to_gpu(resources, number, index, faiss.GpuClonerOptions()), resources


def make_cagra(embeddings: np.ndarray, metric: Metric, seed: int) -> Any:
    """CAGRA's graph, built on the GPU and kept in the form that a CPU can read and search too.

    Raises ValueError without the cuVS build of FAISS or without a GPU.
    """
    if not has_cagra() or num_gpus() == 0:
        raise ValueError("index kind 'cagra' needs a GPU and faiss-gpu-cuvs: use 'torch' or 'ivf_flat'")
    resources = faiss.StandardGpuResources()
    index = faiss.GpuIndexCagra(resources, embeddings.shape[1], faiss_metric(metric))
    index.train(np.ascontiguousarray(embeddings))
    readable = faiss.IndexHNSWCagra()
    index.copyTo(readable)
    return readable
