"""Evaluating on a cluster: blocks of questions are ranked by the nodes, with the noise of the local run.

The noise of `rank_targets` comes from one generator, batch after batch. So it is drawn here once, ahead, and
a block is told the generator's state at its first batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.batch import collate
from model.bulk.block_fields import Fields
from model.bulk.cluster import Cluster
from model.bulk.shared_files import check_folder, folder_digest
from model.checkpoint import checkpoint_folder, load_checkpoint
from model.data.dataset import EvaluationSet
from model.data.interactions import Interactions
from model.evaluation import chosen_queries, noise_shape, rank_targets
from model.noise import fresh_noise
from model.two_tower import TwoTower

_BATCH_SIZE = 256
_MAX_BATCHES = 16
_BLOCKS_A_CPU = 4


def rank_targets_on(
    cluster: Cluster,
    checkpoint: Path,
    model: TwoTower,
    evaluation: EvaluationSet,
    *,
    seed: int = 0,
    mask_seen: bool = False,
    hide_request_time: bool = False,
    max_queries: int | None = None,
    threads: int = 1,
    on_batch: Callable[[int], None] | None = None,
) -> np.ndarray:
    """What `rank_targets` gives on the CPU, ranked by all nodes; they must see the checkpoint at its path.

    model: of the checkpoint, on the CPU   on_batch: told the number of queries done
    -> (Q,) int64   Raises BulkError when the cluster cannot do it.
    """
    queries = chosen_queries(len(evaluation), max_queries)
    num_batches = -(-len(queries) // _BATCH_SIZE)
    batches = min(max(num_batches * threads // (_BLOCKS_A_CPU * cluster.num_cpus), 1), _MAX_BATCHES)
    parts = [
        _part(evaluation, queries[first : first + batches * _BATCH_SIZE])
        for first in range(0, len(queries), batches * _BATCH_SIZE)
    ]
    states = list(_noise_states(model, parts, seed))
    folder = checkpoint_folder(checkpoint).absolute()
    arguments = {
        "checkpoint": folder,
        "digest": folder_digest(folder),
        "mask_seen": mask_seen,
        "hide_request_time": hide_request_time,
    }
    blocks = [_fields(part, state) for part, state in zip(parts, states, strict=False)]
    ranks: list[np.ndarray] = []
    for answer, next_state in zip(
        cluster.run(BlockRanker, arguments, blocks, threads=threads), states[1:], strict=True
    ):
        assert answer["next_state"] == next_state, "the model drew another amount of noise than was counted"
        ranks.append(answer["rank"])
        if on_batch is not None:
            on_batch(sum(map(len, ranks)))
    return np.concatenate(ranks)


class BlockRanker:
    """The worker: the ranks of a block of questions."""

    def __init__(self, checkpoint: Path, digest: str, mask_seen: bool, hide_request_time: bool) -> None:
        check_folder(checkpoint, digest)
        self._model = load_checkpoint(checkpoint).model
        self._mask_seen = mask_seen
        self._hide_request_time = hide_request_time

    def __call__(self, block: dict[str, Any]) -> Iterator[Fields]:
        generator = torch.Generator()
        generator.set_state(torch.frombuffer(bytearray(block["state"]), dtype=torch.uint8))
        rank = rank_targets(
            self._model,
            _evaluation_set(block),
            batch_size=_BATCH_SIZE,
            mask_seen=self._mask_seen,
            hide_request_time=self._hide_request_time,
            generator=generator,
        )
        yield {"rank": rank, "next_state": generator.get_state().numpy().tobytes()}


def _part(evaluation: EvaluationSet, queries: np.ndarray) -> EvaluationSet:
    """Some of the questions, with no more of the log than they read."""
    log = evaluation.interactions
    start, end = log.offsets[evaluation.user[queries]], evaluation.end[queries]
    length = end - start
    offsets = np.concatenate([[0], np.cumsum(length)]).astype(np.int64)
    row = np.repeat(start - offsets[:-1], length) + np.arange(offsets[-1])
    return _questions(
        offsets,
        log.item_index[row],
        log.timestamp[row],
        evaluation.target[queries],
        evaluation.target_time[queries],
    )


def _questions(
    offsets: np.ndarray,
    item_index: np.ndarray,
    timestamp: np.ndarray,
    target: np.ndarray,
    target_time: np.ndarray,
) -> EvaluationSet:
    """Questions whose prefixes are the rows offsets[q]..offsets[q + 1].   offsets: (Q + 1,)"""
    log = Interactions([], [], offsets, item_index, timestamp, report=(), fingerprint="")
    return EvaluationSet(log, np.arange(len(target)), offsets[1:], target, target_time)


def _fields(part: EvaluationSet, state: bytes) -> Fields:
    return {
        "offsets": part.interactions.offsets,
        "item_index": part.interactions.item_index,
        "timestamp": part.interactions.timestamp,
        "target": part.target,
        "target_time": part.target_time,
        "state": state,
    }


def _evaluation_set(block: dict[str, Any]) -> EvaluationSet:
    return _questions(
        *(block[name] for name in ("offsets", "item_index", "timestamp", "target", "target_time"))
    )


def _noise_states(model: TwoTower, parts: list[EvaluationSet], seed: int) -> Iterator[bytes]:
    """The generator's state before each part, and after the last."""
    generator = torch.Generator().manual_seed(seed)
    draws = _draws_a_batch(model, parts[0]) if parts and model.num_steps else 0
    yield generator.get_state().numpy().tobytes()
    for part in parts:
        length = np.minimum(np.diff(part.interactions.offsets), model.max_length)  # (Q,)
        for first in range(0, len(part), _BATCH_SIZE):
            members = length[first : first + _BATCH_SIZE]
            noise = fresh_noise(
                noise_shape(model, len(members), int(members.max())), generator.device, generator
            )
            for step in range(draws):
                noise(step)
        yield generator.get_state().numpy().tobytes()


@torch.inference_mode()
def _draws_a_batch(model: TwoTower, part: EvaluationSet) -> int:
    """How many times the user tower draws noise for a batch: counted by letting it answer one question."""
    was_training = model.training
    model.eval()
    batch = collate([part.sequence(0)], max_length=model.max_length)
    draw = fresh_noise(noise_shape(model, 1, batch.item_index.shape[1]), torch.device("cpu"))
    drawn = []

    def noise(step: int) -> torch.Tensor:
        drawn.append(step)
        return draw(step)

    model.user_embeddings(batch, noise)
    model.train(was_training)
    return len(drawn)
