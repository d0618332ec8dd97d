"""Caser: convolutions over the last L items as over an image (Tang and Wang 2018, WSDM, arXiv:1809.07426).

The L latest embeddings are an L × D matrix E (Eq. 1). Horizontal filters of every height h = 1..L slide
down it (Eq. 2, 3) and are max-pooled over their places (Eq. 4); vertical filters are weighted sums of
its rows (Eq. 5-7); a layer makes z of both (Eq. 8), which is scored against item vectors (Eq. 9).

Departures. No user embedding P_u in Eq. 9, for users who were not in the training data must be served,
and so no user-specific half of the item vectors W'; W' is the table of Eq. 1 and has no bias, for an
index compares inner products. The loss is the softmax over all items for the next item; `binary` is the
paper's with 3 negatives for each target, but for T = 1 following item, not 3. Training is dense: the
window of L items that ends at each position is one example, computed together for all positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from model.baselines.dense_tower import DenseTower
from model.baselines.item_softmax import ItemSoftmax
from model.baselines.settings import check_at_least, check_choice, check_share
from model.batch import SequenceBatch
from model.dropout import Dropout

Loss = Literal["full_softmax", "binary"]


@dataclass(frozen=True)
class CaserConfig:
    """Everything that shapes a Caser model."""

    embedding_dim: int = 64  # D
    max_length: int = 50  # of a sequence handed to the model; it reads the last `window` of it
    window: int = 5  # L
    num_horizontal: int = 16  # filters of each height
    num_vertical: int = 4
    dropout: float = 0.2
    loss: Loss = "full_softmax"
    num_binary_negatives: int = 3
    max_full_softmax_items: int = 20_000  # above it, the softmax is sampled
    num_negatives: int = 8_192

    def __post_init__(self) -> None:
        check_choice(self, "loss", get_args(Loss))
        check_at_least(
            self,
            1,
            (
                "embedding_dim",
                "max_length",
                "window",
                "num_horizontal",
                "num_vertical",
                "num_binary_negatives",
            ),
        )
        check_share(self, ("dropout",))


class Caser(DenseTower):
    """The user tower is the convolutions, the item tower the embedding table."""

    def __init__(self, config: CaserConfig, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.num_items = num_items
        self.max_length = config.max_length
        self.embedding_dim = config.embedding_dim
        dim = config.embedding_dim
        self.items = ItemSoftmax(
            num_items,
            dim,
            max_full_softmax_items=config.max_full_softmax_items,
            num_negatives=config.num_negatives,
        )
        self.horizontal = nn.ModuleList(
            nn.Conv1d(dim, config.num_horizontal, height) for height in range(1, config.window + 1)
        )
        self.vertical = nn.Linear(config.window, config.num_vertical, bias=False)  # F̃
        self.dropout = Dropout(config.dropout)
        size = config.window * config.num_horizontal + config.num_vertical * dim
        self.combine = nn.Linear(size, dim)

    def states(self, batch: SequenceBatch) -> torch.Tensor:
        """(B, N, D) z of the window that ends at each position (Eq. 8)."""
        embedding = self.items.embed(batch.item_index)  # (B, N, D)
        # L - 1 empty rows before the first item: position j's window is rows j..j + L - 1
        rows = F.pad(embedding, (0, 0, self.config.window - 1, 0)).transpose(1, 2)  # (B, D, L - 1 + N)
        features = torch.cat([self.horizontal_features(rows), self.vertical_features(rows)], dim=-1)
        return F.relu(self.combine(self.dropout(features)))

    def horizontal_features(self, rows: torch.Tensor) -> torch.Tensor:
        """o (Eq. 4).   rows: (B, D, L - 1 + N) -> (B, N, L · num_horizontal)

        A filter's value at a place is the same in every window that holds the place: each is convolved
        once over the whole sequence and max-pooled over the L - h + 1 places of every window.
        """
        window = self.config.window
        pooled = []
        for height, convolution in enumerate(self.horizontal, start=1):
            places = F.relu(convolution(rows))  # (B, num_horizontal, N + L - h) Eq. 2, 3
            pooled.append(F.max_pool1d(places, window - height + 1, stride=1))
        return torch.cat(pooled, dim=1).transpose(1, 2)

    def vertical_features(self, rows: torch.Tensor) -> torch.Tensor:
        """õ: num_vertical weighted sums of a window's rows (Eq. 6, 7).   -> (B, N, num_vertical · D)"""
        windows = rows.unfold(2, self.config.window, 1)  # (B, D, N, L)
        return self.vertical(windows).permute(0, 2, 3, 1).flatten(2)

    def loss(self, user: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The softmax, or the paper's binary cross-entropy.   user: (P, D)   target: (P,)"""
        if self.config.loss == "binary":
            return self.items.binary_loss(user, target, self.config.num_binary_negatives)
        return self.items.loss(user, target)
