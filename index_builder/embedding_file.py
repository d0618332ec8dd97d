"""`item_embeddings.safetensors`: the item embeddings, or where among the model's weights they are.

Many item towers are nothing but a table. Its rows are then not stored a second time: they would be
verified twice, and held twice by a service that gathers histories from the one and searches the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from index_builder.mapped_tensors import map_tensors, write_tensors

_TENSOR = "item_embeddings"
_BLOCK_ROWS = 65_536


def write_item_embeddings(path: Path, embeddings: np.ndarray, weights: Mapping[str, torch.Tensor]) -> None:
    """Write item embeddings (M, D), or a pointer when they are the first or last rows of a weight."""
    for name, weight in weights.items():
        if weight.ndim != 2 or weight.dtype != torch.float32 or weight.shape[1] != embeddings.shape[1]:
            continue
        for first_row in {0, len(weight) - len(embeddings)}:
            if first_row < 0 or len(weight) > len(embeddings) + 1:
                continue
            rows = weight[first_row : first_row + len(embeddings)]
            if _are_equal(rows.detach(), embeddings):
                write_tensors(path, {}, {"tensor": name, "first_row": str(first_row)})
                return
    write_tensors(path, {_TENSOR: embeddings})


def _are_equal(rows: torch.Tensor, embeddings: np.ndarray) -> bool:
    """Block by block: nothing of their size is made, and the first difference ends it."""
    return all(
        np.array_equal(
            rows[start : start + _BLOCK_ROWS].cpu().numpy(), embeddings[start : start + _BLOCK_ROWS]
        )
        for start in range(0, len(embeddings), _BLOCK_ROWS)
    )


def map_item_embeddings(path: Path, weights: Mapping[str, torch.Tensor], num_items: int) -> np.ndarray:
    """The item embeddings (M, D), mapped from `path` or sharing memory with mapped `weights`.

    Raises ValueError or KeyError when there are not `num_items` of them.
    """
    with safe_open(path, framework="np") as file:
        pointer = file.metadata()
    if pointer:
        first_row = int(pointer["first_row"])
        embeddings = weights[pointer["tensor"]].numpy()[first_row : first_row + num_items]
    else:
        embeddings = map_tensors(path)[_TENSOR]
    if embeddings.ndim != 2 or embeddings.dtype != np.float32:
        raise ValueError(f"item embeddings must be (M, D) float32, got {embeddings.shape}")
    return embeddings
