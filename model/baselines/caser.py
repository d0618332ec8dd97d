"""Caser: convolutions over the last L items as over an image (Tang and Wang 2018, WSDM, arXiv:1809.07426).

The L latest embeddings are an L × D matrix E (Eq. 2). Horizontal filters of every height h = 1..L slide
down it (Eq. 3, 4) and are max-pooled over their places (Eq. 5); vertical filters are weighted sums of
its rows (Eq. 6-8); a layer makes z of both (Eq. 9), which is scored against item vectors W' (Eq. 10).

Departures. No user embedding P_u in Eq. 10, for users who were not in the training data must be served,
and so no user-specific half of W' (the paper's Table 3 without it, on MovieLens-1M: MAP 0.1448 instead of
0.1507). W' has no bias, which the bias in z can imitate, and is E's own table; `output_items = own` gives
it one of its own, as in the paper. The loss is the softmax over all items for the next item; `binary` is
the paper's with 3 negatives for each target (any items but the target). `num_following` is the paper's T,
how many of the following items each window is asked for: 3 in the authors' code, 1 here. Training is
dense: the window of L items that ends at each position is one example, computed together for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from model.baselines.dense_tower import DenseTower
from model.baselines.settings import check_at_least, check_choice, check_share
from model.batch import SequenceBatch
from model.dropout import Dropout
from model.losses import MAX_FULL_SOFTMAX_ITEMS

Loss = Literal["full_softmax", "binary"]
OutputItems = Literal["shared", "own"]


@dataclass(frozen=True)
class CaserConfig:
    """Everything that shapes a Caser model."""

    embedding_dim: int = 64  # D
    max_length: int = 50  # of a sequence handed to the model; it reads the last `window` of it
    window: int = 5  # L
    num_horizontal: int = 16  # filters of each height
    num_vertical: int = 4
    dropout: float = 0.2
    output_items: OutputItems = "shared"  # W': the table of the inputs, or one of its own
    num_following: int = 1  # T
    loss: Loss = "full_softmax"
    num_binary_negatives: int = 3
    max_full_softmax_items: int = MAX_FULL_SOFTMAX_ITEMS  # above it, the softmax is sampled
    num_negatives: int = 8_192

    def __post_init__(self) -> None:
        check_choice(self, "loss", get_args(Loss))
        check_choice(self, "output_items", get_args(OutputItems))
        check_at_least(
            self,
            1,
            (
                "embedding_dim",
                "max_length",
                "window",
                "num_horizontal",
                "num_vertical",
                "num_following",
                "num_binary_negatives",
            ),
        )
        check_share(self, ("dropout",))


class Caser(DenseTower):
    """The user tower is the convolutions, the item tower the embedding table."""

    def __init__(self, config: CaserConfig, num_items: int) -> None:
        super().__init__(config, num_items)
        self.config = config
        dim = config.embedding_dim
        if config.output_items == "own":
            self.output_table = nn.Embedding(num_items + 1, dim, padding_idx=0)  # W'
            nn.init.normal_(self.output_table.weight[1:], std=0.02)
        self.horizontal = nn.ModuleList(
            nn.Conv1d(dim, config.num_horizontal, height) for height in range(1, config.window + 1)
        )
        self.vertical = nn.Linear(config.window, config.num_vertical, bias=False)  # F̃
        self.dropout = Dropout(config.dropout)
        size = config.window * config.num_horizontal + config.num_vertical * dim
        self.combine = nn.Linear(size, dim)

    def states(self, batch: SequenceBatch) -> torch.Tensor:
        """(B, N, D) z of the window that ends at each position (Eq. 9)."""
        embedding = self.items.embed(batch.item_index)  # (B, N, D)
        # L - 1 empty rows before the first item: position j's window is rows j..j + L - 1
        rows = F.pad(embedding, (0, 0, self.config.window - 1, 0)).transpose(1, 2)  # (B, D, L - 1 + N)
        features = torch.cat([self.horizontal_features(rows), self.vertical_features(rows)], dim=-1)
        return F.relu(self.combine(self.dropout(features)))

    def horizontal_features(self, rows: torch.Tensor) -> torch.Tensor:
        """o (Eq. 5).   rows: (B, D, L - 1 + N) -> (B, N, L · num_horizontal)

        A filter's value at a place is the same in every window that holds the place: each is convolved
        once over the whole sequence and max-pooled over the L - h + 1 places of every window.
        """
        window = self.config.window
        pooled = []
        for height, convolution in enumerate(self.horizontal, start=1):
            places = F.relu(convolution(rows))  # (B, num_horizontal, N + L - h) Eq. 3, 4
            pooled.append(F.max_pool1d(places, window - height + 1, stride=1))
        return torch.cat(pooled, dim=1).transpose(1, 2)

    def vertical_features(self, rows: torch.Tensor) -> torch.Tensor:
        """õ: num_vertical weighted sums of a window's rows (Eq. 7, 8).   -> (B, N, num_vertical · D)"""
        windows = rows.unfold(2, self.config.window, 1)  # (B, D, N, L)
        return self.vertical(windows).permute(0, 2, 3, 1).flatten(2)

    def item_embeddings(self) -> torch.Tensor:
        """(M, D) W' of item indices 1..M."""
        return (
            self.output_table.weight[1:] if self.config.output_items == "own" else super().item_embeddings()
        )

    def training_loss(self, batch: SequenceBatch) -> torch.Tensor:
        """The loss of the T items that follow each position which has a target (Eq. 13, D_t^u)."""
        assert batch.target is not None
        states, target = self.states(batch), batch.target
        supervised = target != 0  # (B, N)
        users, following = [], []
        for _ in range(self.config.num_following):
            users.append(states[supervised])
            following.append(target[supervised])
            target = F.pad(target[:, 1:], (0, 1))  # each position's next but one, and so on
            supervised = supervised & (target != 0)
        return self.loss(torch.cat(users), torch.cat(following))

    def loss(self, user: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The softmax, or the paper's binary cross-entropy.   user: (P, D)   target: (P,)"""
        items = self.item_embeddings()
        if self.config.loss == "binary":
            return self.items.binary_loss(user, target, self.config.num_binary_negatives, items)
        return self.items.loss(user, target, items)
