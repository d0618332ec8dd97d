"""Mamba4Rec (Liu, Lin, Wang, Liu, Caverlee 2024): a sequence read by selective state spaces.

Item embeddings, dropout and LayerNorm; then layers of a Mamba block (selective_scan.py) and a
feed-forward network, each followed by dropout and LayerNorm, with residuals around the block only
where layers are stacked. No position embeddings: the recurrence knows the order.

Departures: every position of a sequence is a target in one pass, where the published training takes
the last one of each prefix; linear layers start as torch's do and Δ as in Mamba itself (0.001..0.1), where
the published code draws all their weights with a deviation of 0.02 and zeroes the biases, which sets Δ to
0.69; the softmax is sampled for large corpora. `time_lag` is ours. The published settings for
MovieLens-1M are the defaults with `max_length = 200`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from model.baselines.dense_tower import DenseTower
from model.baselines.pause import PauseEmbedding
from model.baselines.selective_scan import SelectiveStateSpace
from model.baselines.settings import check_at_least, check_share
from model.batch import SequenceBatch
from model.dropout import Dropout
from model.losses import MAX_FULL_SOFTMAX_ITEMS


@dataclass(frozen=True)
class Mamba4RecConfig:
    """Everything that shapes a Mamba4Rec model."""

    embedding_dim: int = 64  # D
    max_length: int = 50
    num_layers: int = 1
    state_dim: int = 32  # S
    kernel_size: int = 4
    expansion: int = 2  # E / D
    feed_forward_hidden: int = 256
    dropout: float = 0.2
    time_lag: bool = False  # tell each position how long it is until the next behaviour
    request_time_dropout: float = 0.1  # share of these that training hides
    max_full_softmax_items: int = MAX_FULL_SOFTMAX_ITEMS
    num_negatives: int = 8_192

    def __post_init__(self) -> None:
        names = ("embedding_dim", "max_length", "num_layers", "state_dim", "kernel_size", "expansion")
        check_at_least(self, 1, names)
        check_share(self, ("dropout", "request_time_dropout"))


class Mamba4Rec(DenseTower):
    """The user tower (selective state spaces) and the item table."""

    def __init__(self, config: Mamba4RecConfig, num_items: int) -> None:
        super().__init__(config, num_items)
        self.config = config
        self.dropout = Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.embedding_dim)
        self.layers = nn.ModuleList(MambaLayer(config) for _ in range(config.num_layers))
        if config.time_lag:
            self.pause = PauseEmbedding(
                config.embedding_dim, request_time_dropout=config.request_time_dropout
            )

    def states(self, batch: SequenceBatch) -> torch.Tensor:
        """(B, N, D) the user embedding after each position."""
        sequence = self.norm(self.dropout(self.items.embed(batch.item_index)))
        if self.config.time_lag:
            sequence = sequence + self.pause(batch)
        for layer in self.layers:
            sequence = layer(sequence)
        return sequence


class MambaLayer(nn.Module):
    """A Mamba block and a feed-forward network.   (B, N, D) -> (B, N, D)"""

    def __init__(self, config: Mamba4RecConfig) -> None:
        super().__init__()
        dim = config.embedding_dim
        self.has_residual = config.num_layers > 1
        self.block = SelectiveStateSpace(
            dim, state_dim=config.state_dim, kernel_size=config.kernel_size, expansion=config.expansion
        )
        self.dropout = Dropout(config.dropout)
        self.norm_block = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, config.feed_forward_hidden),
            nn.GELU(),
            Dropout(config.dropout),
            nn.Linear(config.feed_forward_hidden, dim),
            Dropout(config.dropout),
        )
        self.norm_feed_forward = nn.LayerNorm(dim)

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        mixed = self.dropout(self.block(sequence))
        sequence = self.norm_block(mixed + sequence if self.has_residual else mixed)
        return self.norm_feed_forward(self.feed_forward(sequence) + sequence)
