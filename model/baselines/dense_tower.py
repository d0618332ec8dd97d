"""What the causal sequence models share: one state for each position, each asked for the next item.

A subclass writes `states`; dense training and the serving position are the same for all of them.
"""

from __future__ import annotations

from abc import abstractmethod

import torch

from model.baselines.item_table_tower import ItemTableTower
from model.batch import SequenceBatch
from model.noise import Noise


class DenseTower(ItemTableTower):
    """A user tower that reads a sequence from left to right; state j knows behaviours up to j only."""

    @abstractmethod
    def states(self, batch: SequenceBatch) -> torch.Tensor:
        """(B, N, D) the user embedding after each position."""

    def user_embedding(self, batch: SequenceBatch, noise: Noise | None = None) -> torch.Tensor:
        """(B, D) the state after the last behaviour."""
        return last_state(self.states(batch), batch.length)

    def training_loss(self, batch: SequenceBatch) -> torch.Tensor:
        """The loss of every position that has a target."""
        assert batch.target is not None
        supervised = batch.target != 0  # (B, N)
        return self.loss(self.states(batch)[supervised], batch.target[supervised])

    def loss(self, user: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Softmax over the items; a model with a loss of its own overrides it.

        user: (P, D)   target: (P,) item indices in 1..M
        """
        return self.items.loss(user, target)


def last_state(states: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """The state at each sequence's last real position.   states: (B, N, D)   length: (B,) -> (B, D)"""
    last = (length - 1)[:, None, None].expand(-1, 1, states.shape[-1])
    return states.gather(1, last)[:, 0]
