"""The contract of every model here: trainer, evaluator, bundle and service know nothing else of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import nn

from model.batch import SequenceBatch
from model.noise import Noise

Metric = Literal["inner_product", "l2"]


class TwoTower(nn.Module, ABC):
    """A user tower and an item tower whose embeddings meet only in an inner product or a distance.

    metric: how an index must compare them   max_length: behaviours the user tower reads, n
    num_items: M   embedding_dim: D
    noise_dim, num_steps: the D of the noise and T, or 0, 0 for a model that draws none
    num_routes: R embeddings a user, each searched for; an item's score is its best
    splits_batches: whether the training losses of a batch's parts add up to its own (`model.batch_part`)

    A parameter or buffer with a row an item has M rows, or M + 1 with the padding first: so a model can go on
    with more items than it was trained with (`model.warm_start`). No other shape may follow from M.
    """

    metric: Metric = "inner_product"
    max_length: int
    num_items: int
    embedding_dim: int
    noise_dim: int = 0
    num_steps: int = 0
    num_routes: int = 1
    splits_batches: bool = False

    @abstractmethod
    def user_embedding(self, batch: SequenceBatch, noise: Noise | None = None) -> torch.Tensor:
        """(B, D) what each user is about to want, read after the last behaviour of its sequence."""

    def user_embeddings(self, batch: SequenceBatch, noise: Noise | None = None) -> torch.Tensor:
        """(B, R, D) one embedding for each route; `noise` draws (B * R, N, D), a user's routes together."""
        return self.user_embedding(batch, noise)[:, None]

    @abstractmethod
    def item_embeddings(self) -> torch.Tensor:
        """(M, D) row m belongs to item index m + 1."""

    def item_embedding_rows(self, start: int, stop: int) -> torch.Tensor:
        """(stop - start, D) some rows of `item_embeddings`; who computes them, computes no others here."""
        return self.item_embeddings()[start:stop]

    @abstractmethod
    def training_loss(self, batch: SequenceBatch) -> torch.Tensor:
        """The scalar loss of a batch whose `target` is set."""

    def observe_item_counts(self, counts: torch.Tensor) -> None:
        """Told before training how often each item occurs, (M,); models that sample negatives use it."""
