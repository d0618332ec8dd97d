"""The only importer of FAISS: after torch, always, and with what FAISS sets for the whole process.

The other files here take `faiss` from this one, so that the order of the two imports stands in one place.
"""

from __future__ import annotations

from typing import Any

import torch  # noqa: F401  (first: the other order has crashed)

# isort: split
import faiss as faiss_module

from model.two_tower import Metric

faiss: Any = faiss_module  # its type stubs lag behind it

FAISS_VERSION: str = faiss.__version__


def set_num_threads(count: int) -> None:
    """Let FAISS use `count` CPU threads per call (a process-wide setting of OpenMP's)."""
    if count < 1:
        raise ValueError(f"FAISS needs at least 1 thread, got {count}")
    faiss.omp_set_num_threads(count)


def num_gpus() -> int:
    """How many GPUs FAISS can use: none without its GPU build."""
    return faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0


def has_cagra() -> bool:
    """Whether this FAISS was built with cuVS, which alone knows CAGRA."""
    return hasattr(faiss, "GpuIndexCagra")


def faiss_metric(metric: Metric) -> int:
    """FAISS's number for a metric. Raises ValueError for one that it is not asked to know here."""
    if metric == "inner_product":
        return faiss.METRIC_INNER_PRODUCT
    if metric == "l2":
        return faiss.METRIC_L2
    raise ValueError(f"metric must be inner_product or l2, got {metric!r}")
