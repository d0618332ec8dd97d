"""The vectors that a build needs: every item's embedding, and real users' embeddings to search with."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Collection

import numpy as np
import torch

from model.batch import Sequence, collate
from model.engines.interface import EagerTower
from model.noise import request_key
from model.two_tower import TwoTower

_BATCH_SIZE = 64
_BLOCK_ROWS = 65_536


def embed_items(model: TwoTower) -> np.ndarray:
    """The item tower's output on the host.   -> (M, D) float32, row m is item index m + 1

    Where it is a table of the model already, those rows themselves. What must be computed is, block by block,
    into a mapped temporary file without a name. Raises OSError when there is no room for it.
    """
    with torch.inference_mode():
        if _is_table(model):
            return np.ascontiguousarray(model.item_embeddings().numpy())
    blocks = item_blocks(model.num_items)
    return gather_blocks(model, ((block.start, embed_block(model, block)) for block in blocks))


def item_blocks(num_items: int) -> Iterator[range]:
    """The rows that are computed together: floats may differ in their last bit with other company."""
    for start in range(0, num_items, _BLOCK_ROWS):
        yield range(start, min(start + _BLOCK_ROWS, num_items))


@torch.inference_mode()
def embed_block(model: TwoTower, block: range) -> np.ndarray:
    """-> (len(block), D) float32 on the host"""
    return model.item_embedding_rows(block.start, block.stop).float().cpu().numpy()


def gather_blocks(model: TwoTower, blocks: Iterable[tuple[int, np.ndarray]]) -> np.ndarray:
    """(first row, embeddings) of every block, in a mapped file without a name.   -> (M, D) float32"""
    with torch.inference_mode():
        dim = model.item_embedding_rows(0, 1).shape[1]
    embeddings = _mapped_array(model.num_items, dim)
    for start, rows in blocks:
        embeddings[start : start + len(rows)] = rows
    return embeddings


def _is_table(model: TwoTower) -> bool:
    """Whether the item embeddings are rows of a weight in the host's memory, as they are."""
    rows = model.item_embedding_rows(0, 1)
    weights = {weight.untyped_storage().data_ptr() for weight in model.state_dict().values()}
    on_host = rows.device.type == "cpu" and rows.dtype == torch.float32
    return on_host and rows.untyped_storage().data_ptr() in weights


def _mapped_array(num_rows: int, dim: int) -> np.ndarray:
    """(M, D) float32 in a file that vanishes with the array; its room on disk is taken now."""
    with tempfile.TemporaryFile(prefix="t2diff-embeddings-") as file:
        os.posix_fallocate(file.fileno(), 0, num_rows * dim * 4)  # a full disk later would kill the process
        return np.asarray(np.memmap(file, np.float32, "r+", shape=(num_rows, dim)))


def embed_prefixes(model: TwoTower, sequences: Collection[Sequence], *, max_queries: int = 256) -> np.ndarray:
    """User embeddings after every behaviour of `sequences`: users as the index will meet them.

    -> (Q, D) float32 of at most `max_queries` prefixes, spread evenly, every route of each
    """
    prefixes = list(_prefixes(sequences))
    chosen = np.unique(np.linspace(0, len(prefixes) - 1, min(max_queries, len(prefixes))).astype(int))
    tower = EagerTower(model)
    queries = []
    for start in range(0, len(chosen), _BATCH_SIZE):
        members = chosen[start : start + _BATCH_SIZE]
        batch = collate([prefixes[member] for member in members], max_length=model.max_length)
        keys = [request_key(0, f"prefix-{member}") for member in members]
        queries.append(tower.user_embeddings(batch, keys).flatten(0, 1).float().cpu().numpy())
    return np.concatenate(queries)


def _prefixes(sequences: Collection[Sequence]) -> Iterator[Sequence]:
    """What was known just before each next behaviour, and at the end."""
    for sequence in sequences:
        times = [*(int(time) for time in sequence.timestamp[1:]), sequence.request_time]
        for length, request_time in enumerate(times, start=1):
            yield Sequence(sequence.item_index[:length], sequence.timestamp[:length], request_time)
