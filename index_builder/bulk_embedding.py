"""Embedding the catalogue on a cluster: blocks of items, each by an actor that mapped the checkpoint once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from index_builder.embed_items import embed_block, embed_items, gather_blocks, item_blocks
from model.bulk.block_fields import Fields
from model.bulk.cluster import Cluster, connected
from model.bulk.shared_files import check_folder, folder_digest
from model.checkpoint import checkpoint_folder, map_checkpoint
from model.two_tower import TwoTower


def choose_embedding(
    ray: str, checkpoint: Path, *, threads: int, on_block: Callable[[int], None]
) -> Callable[[TwoTower], np.ndarray]:
    """How a model's items are embedded: on the Ray cluster at the address `ray`, or here when it is empty.

    on_block: told by a cluster how many items are done
    """
    if not ray:
        return embed_items

    def embed(model: TwoTower) -> np.ndarray:
        with connected(ray) as cluster:
            return embed_items_on(cluster, checkpoint, model, threads=threads, on_block=on_block)

    return embed


def embed_items_on(
    cluster: Cluster,
    checkpoint: Path,
    model: TwoTower,
    *,
    threads: int = 1,
    on_block: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """What `embed_items` gives on the CPU, by all nodes; they must see the checkpoint at its path.

    model: of the checkpoint   on_block: told the number of items done   -> (M, D) float32
    Raises BulkError when the cluster cannot do it.
    """
    folder = checkpoint_folder(checkpoint).absolute()
    arguments = {"checkpoint": folder, "digest": folder_digest(folder)}
    blocks = list(item_blocks(model.num_items))
    answers = cluster.run(
        BlockEmbedder,
        arguments,
        [{"start": block.start, "stop": block.stop} for block in blocks],
        threads=threads,
    )

    def embedded() -> Iterator[tuple[int, np.ndarray]]:
        for block, answer in zip(blocks, answers, strict=True):
            yield block.start, answer["embeddings"].reshape(len(block), -1)
            on_block(block.stop)

    return gather_blocks(model, embedded())


class BlockEmbedder:
    """The worker: the embeddings of a block of items."""

    def __init__(self, checkpoint: Path, digest: str) -> None:
        check_folder(checkpoint, digest)
        self._model = map_checkpoint(checkpoint).model

    def __call__(self, block: dict[str, Any]) -> Iterator[Fields]:
        rows = embed_block(self._model, range(block["start"], block["stop"]))  # (m, D)
        yield {"embeddings": rows.ravel()}
