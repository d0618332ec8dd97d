"""What every baseline with a learned vector for each item shares: its sizes, its item table, its softmax."""

from __future__ import annotations

from typing import Protocol

import torch

from model.baselines.item_softmax import ItemSoftmax
from model.two_tower import TwoTower


class TableConfig(Protocol):
    """The settings that all of them have."""

    @property
    def embedding_dim(self) -> int: ...
    @property
    def max_length(self) -> int: ...
    @property
    def max_full_softmax_items(self) -> int: ...
    @property
    def num_negatives(self) -> int: ...


class ItemTableTower(TwoTower):
    """The item tower is a table; the user tower is the subclass's."""

    def __init__(
        self,
        config: TableConfig,
        num_items: int,
        *,
        dim: int | None = None,
        normalize_inputs: bool = False,
    ) -> None:
        """dim: of the table's rows, by default the settings' D   normalize_inputs: as of ItemSoftmax"""
        super().__init__()
        self.num_items = num_items
        self.max_length = config.max_length
        self.embedding_dim = dim or config.embedding_dim
        self.items = ItemSoftmax(
            num_items,
            self.embedding_dim,
            max_full_softmax_items=config.max_full_softmax_items,
            num_negatives=config.num_negatives,
            normalize_inputs=normalize_inputs,
        )

    def item_embeddings(self) -> torch.Tensor:
        """(M, D) of item indices 1..M."""
        return self.items.item_embeddings()

    def observe_item_counts(self, counts: torch.Tensor) -> None:
        """For the sampled softmax."""
        self.items.observe_item_counts(counts)
