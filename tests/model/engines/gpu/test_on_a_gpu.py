"""The engines on a GPU. Not run: no GPU was at hand when this was written; skipped without one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.batch import SequenceBatch, collate
from model.engines.gpu.gpu_tower import build_gpu_tower
from model.engines.gpu.graph import GraphTower
from model.t2diff import T2Diff
from tests.model.engines.conftest import error, ragged, reference, sequences, tower_model

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
TOLERANCE = {"graph": 1e-4, "persistent": 5e-3}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"unet_padding": "same"},
    {"num_routes": 3},
    {"predicted_next": "regressed"},
    {"num_inference_steps": 10, "sampler": "ddim"},
    {"max_length": 100},
    {"embedding_dim": 20, "unet_channels": (10, 7, 23), "max_length": 23},
]


def _tower(model: T2Diff, kind: Any, cache: Path) -> GraphTower:
    tower = build_gpu_tower(copy.deepcopy(model).cuda(), kind, cache=cache)
    assert isinstance(tower, GraphTower)
    assert tower.name == kind
    return tower


def _keys(batch: SequenceBatch) -> list[int]:
    return [2**63 + 11 * number for number in range(len(batch.length))]


@gpu
@pytest.mark.parametrize("kind", TOLERANCE)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_an_engine_equals_the_reference(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = tower_model(**settings)
    tower = _tower(model, kind, tmp_path)
    batch = ragged(model)
    expected = reference(model, batch, _keys(batch))
    for _ in range(3):  # the ring has come round
        assert error(tower.user_embeddings(batch, _keys(batch)).cpu(), expected) < TOLERANCE[kind]


@gpu
@pytest.mark.parametrize("kind", TOLERANCE)
@pytest.mark.parametrize("size", [1, 3, 33, 256, 300])
def test_batched_equals_single(kind: str, size: int, tmp_path: Path) -> None:
    model = tower_model()
    tower = _tower(model, kind, tmp_path)
    made = sequences([1 + number % 50 for number in range(size)])
    keys = [7 + number for number in range(size)]
    together = tower.user_embeddings(collate(made, max_length=50), keys)
    for row in {0, size // 2, size - 1}:
        alone = tower.user_embeddings(collate([made[row]], max_length=50), keys[row : row + 1])
        assert error(together[row : row + 1].cpu(), alone.double().cpu()) < 1e-5


@gpu
@pytest.mark.parametrize("kind", TOLERANCE)
@pytest.mark.parametrize("num_excluded", [0, 10, 295])
def test_recall_never_returns_what_is_excluded(kind: str, num_excluded: int, tmp_path: Path) -> None:
    model = tower_model()
    tower = _tower(model, kind, tmp_path)
    batch = ragged(model)
    exclude = [np.random.default_rng(row).permutation(300)[:num_excluded] + 1 for row in range(8)]
    items, scores = tower.recall(batch, _keys(batch), exclude, 20)
    user = tower.user_embedding(batch, _keys(batch)).cpu()
    for row, out in enumerate(exclude):
        allowed = user[row] @ model.item_table.weight.detach().T
        allowed[[0, *out.tolist()]] = -torch.inf
        best = allowed.topk(20)
        left = min(20, 300 - num_excluded)
        assert set(items[row, :left].tolist()) == set(best.indices[:left].tolist())
        assert np.allclose(scores[row, :left], best.values[:left].numpy(), rtol=1e-4, atol=1e-5)
        assert (items[row, left:] == 0).all()
