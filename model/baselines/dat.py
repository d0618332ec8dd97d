"""DAT+: two towers that imitate each other's outputs (Yu et al. 2021, "A Dual Augmented Two-tower Model
for Online Large-scale Recommendation", DLP-KDD), on a plain two-tower over sequences as T2Diff's paper
compares with (its Section 5.1.2: the Adaptive-Mimic Mechanism, AMM, alone).

Each side's input holds an augmented vector: p_u = tower_u([e_u, a_u]) and p_v = tower_v([e_v, a_v]), both
of length 1 (Eq. 1), score <p_u, p_v>. For a positive pair a_u learns p_v and a_v learns p_u, whose gradients
are stopped: loss_u = mean |a_u - p_v|², loss_v = mean |a_v - p_u|² (Eq. 2, by which negatives add 0). So a_v
is what users who want the item look like, and a_u what the user's next items look like.

Departures. The paper has one free a_u for each user; here it is a network's output on the user's pooled
sequence, for users who were not in the training data must be served. a_v is free, one for each item,
so that the item embeddings are a static table. e_u is a pooled sequence: weighted by how far back each
behaviour is (learned), or with `pooling = mean` the plain average; the embeddings read are LayerNorm'd;
every position of a window is a user of its own (dense). The loss is the softmax of <p_u, p_v> / temperature
over all items; `binary` with `temperature = 1` is the paper's (Eq. 4), with evenly drawn negatives. The
towers end in a linear layer, where a ReLU would keep all their outputs in one orthant, and have one hidden
layer; `num_layers = 2` makes three layers, as the paper has. No Category Alignment Loss (Eq. 3): there are
no categories.
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
Pooling = Literal["recency", "mean"]


@dataclass(frozen=True)
class DATConfig:
    """Everything that shapes a DAT+ model."""

    embedding_dim: int = 64  # D
    max_length: int = 50  # n
    pooling: Pooling = "recency"
    num_layers: int = 1  # hidden layers of each tower
    feed_forward_hidden: int = 128
    dropout: float = 0.2
    temperature: float = 0.07
    mimic_user_weight: float = 0.5  # λ_1
    mimic_item_weight: float = 0.5  # λ_2
    loss: Loss = "full_softmax"
    num_binary_negatives: int = 4
    max_full_softmax_items: int = MAX_FULL_SOFTMAX_ITEMS  # above it, the softmax is sampled
    num_negatives: int = 8_192

    def __post_init__(self) -> None:
        check_choice(self, "loss", get_args(Loss))
        check_choice(self, "pooling", get_args(Pooling))
        names = ("embedding_dim", "max_length", "num_layers", "feed_forward_hidden", "num_binary_negatives")
        check_at_least(self, 1, names)
        check_at_least(self, 0, ("mimic_user_weight", "mimic_item_weight"))
        check_share(self, ("dropout",))
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")


class DAT(DenseTower):
    """Two towers of fully connected layers, each with an augmented vector beside its features."""

    recency: torch.Tensor  # (max_length,) how much a behaviour so far back counts, before a softmax

    def __init__(self, config: DATConfig, num_items: int) -> None:
        super().__init__(config, num_items, normalize_inputs=True)
        self.config = config
        dim = config.embedding_dim
        self.augmented_item = nn.Embedding(num_items + 1, dim, padding_idx=0)  # a_v
        nn.init.normal_(self.augmented_item.weight, std=0.02)
        self.augment_user = _network(dim, config)  # pooled sequence -> a_u
        self.user_tower = _network(2 * dim, config)
        self.item_tower = _network(2 * dim, config)
        recency = torch.zeros(config.max_length)  # of equal weight: the mean
        if config.pooling == "recency":
            self.recency = nn.Parameter(recency)
        else:
            self.register_buffer("recency", recency)

    def states(self, batch: SequenceBatch) -> torch.Tensor:
        """(B, N, D) p_u after each position."""
        return self.user_and_augmented(batch)[0]

    def user_and_augmented(self, batch: SequenceBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """p_u and a_u after each position.   -> two of (B, N, D)"""
        pooled = self.pool(self.items.embed(batch.item_index))
        augmented = self.augment_user(pooled.detach())
        return F.normalize(self.user_tower(torch.cat([pooled, augmented], dim=-1)), dim=-1), augmented

    def pool(self, sequence: torch.Tensor) -> torch.Tensor:
        """e_u: at each position the weighted average of the behaviours up to it.   (B, N, D) -> (B, N, D)"""
        column = torch.arange(sequence.shape[1], device=sequence.device)
        back = column[:, None] - column[None, :]  # (N, N) from reader to read
        score = self.recency[back.clamp(min=0)].masked_fill(back < 0, float("-inf"))
        return score.softmax(dim=-1) @ sequence

    def item_vectors(self, item_index: torch.Tensor) -> torch.Tensor:
        """p_v.   item_index: (K,) in 1..M -> (K, D)"""
        feature = torch.cat([self.items.embed(item_index), self.augmented_item(item_index)], dim=-1)
        return F.normalize(self.item_tower(feature), dim=-1)

    def item_embeddings(self) -> torch.Tensor:
        """(M, D) p_v of item indices 1..M."""
        return self.item_embedding_rows(0, self.num_items)

    def item_embedding_rows(self, start: int, stop: int) -> torch.Tensor:
        """(stop - start, D) p_v of item indices start + 1..stop."""
        return self.item_vectors(torch.arange(start + 1, stop + 1, device=self.recency.device))

    def training_loss(self, batch: SequenceBatch) -> torch.Tensor:
        """loss_p + λ_1·loss_u + λ_2·loss_v."""
        assert batch.target is not None
        supervised = batch.target != 0  # (B, N)
        target = batch.target[supervised]  # (P,)
        every_user, every_augmented = self.user_and_augmented(batch)
        user, augmented_user = every_user[supervised], every_augmented[supervised]  # (P, D)
        return (
            self.loss(user, target)
            + self.config.mimic_user_weight * mimic_loss(augmented_user, self.item_vectors(target))
            + self.config.mimic_item_weight * mimic_loss(self.augmented_item(target), user)
        )

    def loss(self, user: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """loss_p: the softmax, or the paper's cross-entropy on σ(score).   user: (P, D)   target: (P,)"""
        scaled = user / self.config.temperature
        if self.config.loss == "binary":
            return self.items.binary_loss(scaled, target, self.config.num_binary_negatives, self.item_vectors)
        return self.items.loss(scaled, target, self.item_vectors)


def mimic_loss(augmented: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """How far augmented vectors are from the other tower's outputs, which do not move.   (P, D) -> scalar"""
    return (augmented - output.detach()).square().sum(dim=-1).mean()


def _network(num_inputs: int, config: DATConfig) -> nn.Sequential:
    """`num_layers` hidden layers of ReLU, then a linear one.   (..., num_inputs) -> (..., D)"""
    layers: list[nn.Module] = []
    for _ in range(config.num_layers):
        layers += [nn.Linear(num_inputs, config.feed_forward_hidden), nn.ReLU(), Dropout(config.dropout)]
        num_inputs = config.feed_forward_hidden
    return nn.Sequential(*layers, nn.Linear(num_inputs, config.embedding_dim))
