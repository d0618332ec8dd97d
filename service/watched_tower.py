"""A user tower during one batch: what comes out of it broken or too late goes no further."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from model.batch import PaddedSequences, SequenceBatch
from model.engines.tower_engine import TowerEngine
from service.deadline import Deadline
from service.errors import DeadlineExceededError


class WatchedTower(TowerEngine):
    """`tower` for the members of one batch, whose deadlines are given.

    finite: (B,) bool, after `embed`: whose embedding is made of numbers. The others are searched as zeros,
    for one user's NaN must not cost the rest of the batch its answers; the caller drops them.
    """

    def __init__(self, tower: TowerEngine, deadlines: Sequence[Deadline | None]) -> None:
        self.model, self.device, self.name = tower.model, tower.device, tower.name  # checked already
        self.finite = np.ones(len(deadlines), bool)
        self._tower = tower
        self._deadlines = deadlines

    def user_embeddings(self, batch: SequenceBatch, keys: Sequence[int]) -> torch.Tensor:
        """(B, R, D)"""
        return self._tower.user_embeddings(batch, keys)

    def embed(self, padded: PaddedSequences, keys: Sequence[int]) -> np.ndarray:
        """(B, R, D) float32, finite.

        Raises ValueError when no embedding is, DeadlineExceededError when nobody waits for the search.
        """
        routes = self._tower.embed(padded, keys)
        self.finite = np.isfinite(routes).all(axis=(1, 2))
        if not self.finite.any():
            raise ValueError("every user embedding of the batch holds NaN or infinity: the tower is broken")
        if all(deadline is not None and deadline.expired for deadline in self._deadlines):
            raise DeadlineExceededError("the deadline passed while the user tower ran")
        return routes if self.finite.all() else np.where(self.finite[:, None, None], routes, 0)
