"""What searching a saved index costs a process in memory: run as a program by `index_builder.benchmark`.

Arguments: the folder with `index.faiss` and `embeddings`, kind, metric, rescored, top_k. Prints bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

import psutil
import torch

from index_builder import ann
from index_builder.mapped_tensors import map_tensors
from model.two_tower import Metric

_WARM_UP_ITEMS = 512


def main(folder: str, kind: str, metric: str, rescored: str, top_k: str) -> None:
    """Search every user once, in batches of 32."""
    torch.set_num_threads(1)
    ann.set_num_threads(1)
    arrays = map_tensors(Path(folder) / "embeddings")
    users = arrays["users"].copy()
    small = ann.build_index(arrays["items"][:_WARM_UP_ITEMS].copy(), kind=kind, metric=cast(Metric, metric))
    small.search(users[:32], min(int(top_k), _WARM_UP_ITEMS))  # the libraries' own working memory
    before = psutil.Process().memory_info().rss
    index = ann.AnnIndex.open(
        Path(folder) / "index.faiss",
        kind=kind,
        metric=cast(Metric, metric),
        embeddings=arrays["items"],
        rescored=int(rescored),
    )
    for start in range(0, len(users), 32):
        index.search(users[start : start + 32], int(top_k))
    print(psutil.Process().memory_info().rss - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
