"""GRU4Rec: a gated recurrent network over the sequence (Hidasi et al. 2016, ICLR, arXiv:1511.06939).

h_t = (1 - z_t)·h_{t-1} + z_t·ĥ_t with an update gate z_t, a candidate ĥ_t and a reset gate r_t (the
paper's Section 3); its ranking losses TOP1 and BPR (Section 3.1.3) over the other examples' targets
("sampling on the output", Section 3.1.2).

Departures. The default loss is the softmax over all items, the strongest of those known since
(`loss = top1` or `bpr` for the paper's). Gradients run back through the whole window instead of one
step, so batches of windows replace session-parallel ones. The item vectors of input and output are
one table ("constrained embedding" in the authors' code, which its best published settings use), and the
state is mapped linearly to its dimension D, without a bias for each item. torch's GRU applies the reset
gate after U·h, not before, and has its z_t for the paper's 1 - z_t. A negative that equals the target is
left out. `time_lag`, the pause to the next behaviour, is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from model.baselines.dense_tower import DenseTower
from model.baselines.pause import PauseEmbedding
from model.baselines.settings import check_at_least, check_choice, check_share
from model.batch import SequenceBatch
from model.dropout import Dropout
from model.losses import MAX_FULL_SOFTMAX_ITEMS

Loss = Literal["full_softmax", "top1", "bpr"]


@dataclass(frozen=True)
class GRU4RecConfig:
    """Everything that shapes a GRU4Rec model."""

    embedding_dim: int = 64  # D
    max_length: int = 50  # n
    num_layers: int = 1
    hidden: int = 128  # of h
    dropout: float = 0.2
    time_lag: bool = False
    request_time_dropout: float = 0.1  # share of training positions that hide when the next behaviour is
    loss: Loss = "full_softmax"
    max_full_softmax_items: int = MAX_FULL_SOFTMAX_ITEMS  # above it, the softmax is sampled
    num_negatives: int = 8_192

    def __post_init__(self) -> None:
        check_choice(self, "loss", get_args(Loss))
        check_at_least(self, 1, ("embedding_dim", "max_length", "num_layers", "hidden"))
        check_share(self, ("dropout", "request_time_dropout"))


class GRU4Rec(DenseTower):
    """The user tower is the GRU, the item tower the embedding table."""

    def __init__(self, config: GRU4RecConfig, num_items: int) -> None:
        super().__init__(config, num_items)
        self.config = config
        if config.time_lag:
            self.pause = PauseEmbedding(
                config.embedding_dim, request_time_dropout=config.request_time_dropout
            )
        self.dropout = Dropout(config.dropout)
        self.gru = nn.GRU(
            config.embedding_dim,
            config.hidden,
            num_layers=config.num_layers,
            dropout=config.dropout if config.num_layers > 1 else 0.0,
            batch_first=True,
        )
        self.of_state = nn.Linear(config.hidden, config.embedding_dim)

    def states(self, batch: SequenceBatch) -> torch.Tensor:
        """(B, N, D) the projected h after each position."""
        tokens = self.dropout(self.items.embed(batch.item_index))
        if self.config.time_lag:
            tokens = tokens + self.pause(batch)
        hidden, _ = self.gru(tokens)  # (B, N, hidden)
        return self.of_state(self.dropout(hidden))

    def loss(self, user: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The softmax or one of the paper's losses.   user: (P, D)   target: (P,)"""
        if self.config.loss == "full_softmax":
            return self.items.loss(user, target)
        scores = (user @ self.items.item_table(target).T).float()  # (P, P) of every example's target
        negative = target[None, :] != target[:, None]
        ranking_loss = top1_loss if self.config.loss == "top1" else bpr_loss
        return ranking_loss(scores.diagonal(), scores, negative)


def top1_loss(positive: torch.Tensor, scores: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """TOP1 (Section 3.1.3): mean of σ(r_j - r_i) + σ(r_j²), which also pulls the negatives' scores to zero.

    positive: (P,) r_i   scores: (P, S) r_j   negative: (P, S) bool, which of them count   -> scalar
    """
    each = torch.sigmoid(scores - positive[:, None]) + torch.sigmoid(scores.square())
    return _mean_over(each, negative)


def bpr_loss(positive: torch.Tensor, scores: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """BPR (Section 3.1.3): mean of -log σ(r_i - r_j).   Arguments as of `top1_loss`."""
    return _mean_over(F.softplus(scores - positive[:, None]), negative)


def _mean_over(each: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The mean over rows of each row's mean over what is chosen, 0 for a row without any."""
    return ((each * chosen).sum(dim=1) / chosen.sum(dim=1).clamp(min=1)).mean()
