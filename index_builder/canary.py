"""A few sequences with the candidates that they must give: a bundle's proof that its parts fit together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Sequence as Collection
from dataclasses import dataclass

import numpy as np

from index_builder.ann import AnnIndex
from index_builder.bundle_files import BundleError
from index_builder.candidates import recall_sequences
from model.batch import Sequence
from model.engines.interface import EagerTower, TowerEngine
from model.noise import request_key
from model.two_tower import TwoTower

CANARY_TOP_K = 100
_MAX_REPLACED = 3
"""Of 100, by an approximate index: FAISS in place of the native search of the same lists replaced none or one
in 512 queries on 1M items, a user embedding rounded to bfloat16 up to two."""


@dataclass(frozen=True)
class CanaryCase:
    """One request and its answer.   candidates, scores: best first, `top_k` of each (or all items)"""

    sequence: Sequence
    seed: int
    user_id: str
    top_k: int
    candidates: list[str]
    scores: list[float]


def record_canary(
    model: TwoTower, index: AnnIndex, item_ids: Collection[str], sequences: Collection[Sequence]
) -> list[CanaryCase]:
    """The answers that this model and index give now."""
    cases = []
    top_k = min(CANARY_TOP_K, len(item_ids))
    for number, sequence in enumerate(sequences):
        asked = CanaryCase(
            sequence, seed=0, user_id=f"canary-{number}", top_k=top_k, candidates=[], scores=[]
        )
        candidates, scores = _answer(model, index, item_ids, asked)
        cases.append(CanaryCase(sequence, 0, asked.user_id, top_k, candidates, scores))
    return cases


def replay_canary(
    model: TwoTower,
    index: AnnIndex,
    item_ids: Collection[str],
    cases: Collection[CanaryCase],
    *,
    tolerance: float | None = None,
    tower: TowerEngine | None = None,
) -> None:
    """Ask every canary again, alone. Raises BundleError when an answer is not the recorded one.

    tower: the engine to ask; the plain one, which recorded the answers, when None
    tolerance: as of `canary_mismatch`; the engine's own when None
    """
    tower = tower or EagerTower(model)
    tolerance = tower.tolerance if tolerance is None else tolerance
    for case in cases:
        candidates, scores = _answer(model, index, item_ids, case, tower)
        replaced = 0 if index.exact else _MAX_REPLACED
        mismatch = canary_mismatch(case, candidates, scores, tolerance=tolerance, max_replaced=replaced)
        if mismatch:
            raise BundleError(f"{case.user_id} does not give its recorded answer: {mismatch}")


def canary_mismatch(
    case: CanaryCase,
    candidates: list[str],
    scores: list[float],
    *,
    tolerance: float = 1e-3,
    max_replaced: int = 0,
) -> str | None:
    """What is wrong with an answer to `case`, or None.

    Another processor rounds otherwise, so scores may differ by `tolerance` times the largest score, and
    candidates whose scores are that close may change places or fall off the end. An approximate index may
    then also look into another list: so many candidates may be others, and move the rest up or down.
    """
    if len(candidates) != len(case.candidates) or len(set(candidates)) != len(candidates):
        return f"{len(set(candidates))} distinct candidates, {len(case.candidates)} expected"
    allowed = tolerance * float(np.abs(case.scores).max(initial=0.0))
    expected = dict(zip(case.candidates, case.scores, strict=True))
    others = 0
    for rank, (item_id, score) in enumerate(zip(candidates, scores, strict=True)):
        here = case.scores[max(0, rank - max_replaced) : rank + max_replaced + 1]  # best first
        in_place = here[-1] - allowed <= score <= here[0] + allowed  # NaN must not pass
        if rank + max_replaced >= len(case.scores):
            in_place = score <= here[0] + allowed
        right = expected.get(item_id, case.scores[-1])
        if in_place and abs(score - right) <= allowed:
            continue
        others += item_id not in expected
        if not in_place or item_id in expected or others > max_replaced:
            return (
                f"rank {rank} is {item_id!r} ({score:.6g}), not {case.candidates[rank]!r} "
                f"({case.scores[rank]:.6g})"
            )
    return None


def encode_canary(cases: Collection[CanaryCase], item_ids: Collection[str]) -> bytes:
    """UTF-8 JSON, with items by their ids.   item_ids: of every row of the model"""
    entries = [
        {
            "user_id": case.user_id,
            "seed": case.seed,
            "top_k": case.top_k,
            "item_ids": [item_ids[index - 1] for index in case.sequence.item_index],
            "timestamp": [int(time) for time in case.sequence.timestamp],
            "request_time": int(case.sequence.request_time),
            "candidates": case.candidates,
            "scores": case.scores,
        }
        for case in cases
    ]
    return json.dumps(entries, indent=1, allow_nan=False).encode()


def decode_canary(data: bytes, item_index_of: Mapping[str, int]) -> list[CanaryCase]:
    """The inverse of `encode_canary`. Raises KeyError, TypeError or ValueError for anything else."""
    return [
        CanaryCase(
            sequence=Sequence(
                np.array([item_index_of[item_id] for item_id in entry["item_ids"]], dtype=np.int64),
                np.array(entry["timestamp"], dtype=np.int64),
                int(entry["request_time"]),
            ),
            seed=int(entry["seed"]),
            user_id=entry["user_id"],
            top_k=int(entry["top_k"]),
            candidates=list(entry["candidates"]),
            scores=[float(score) for score in entry["scores"]],
        )
        for entry in json.loads(data)
    ]


def _answer(
    model: TwoTower,
    index: AnnIndex,
    item_ids: Collection[str],
    case: CanaryCase,
    tower: TowerEngine | None = None,
) -> tuple[list[str], list[float]]:
    key = request_key(case.seed, case.user_id)
    found = recall_sequences(model, index, [case.sequence], [key], top_k=case.top_k, tower=tower)
    kept = found.item_index[0] > 0
    return (
        [item_ids[item - 1] for item in found.item_index[0][kept].tolist()],
        [float(score) for score in found.score[0][kept]],
    )
