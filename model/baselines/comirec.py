"""ComiRec-SA (Cen, Zhang, Zou, Zhou, Yang, Tang 2020): R attention heads read R interests from a sequence.

    A = softmax(W₂ tanh(W₁ (X + P)))ᵀ        V = A X

with one row of A for each head. Serving searches with every interest and keeps an item's best score;
`user_embeddings` gives all R, the routes. `user_embedding`, one vector for one search, is the interest
of the largest norm: an average over behaviours that agree keeps its length, over unrelated ones it does not.

The paper hands each target to the interest that scores it best and takes the softmax of that
interest alone (`loss = "label_aware"`). Heads then share out the catalogue and never learn how they
compare, while serving compares them. The default, `best_interest`, is the softmax over the scores
that serving gives, max_r v_r·e_i, for target and other items alike. (MovieLens-1M, n = 50, R = 4,
1,000 updates, 1,000 validation users, one run each: merged Recall@20 0.22 against 0.11.)

Other departures: X is LayerNorm'd, for averages of embeddings that start small hardly learn (0.21
against 0.08 with R = 1 in the same runs); each head also learns how much to prefer recent behaviours
(a bias for each distance, zero at first), since absolute positions do not say what came last; every
position is a target in one pass, its heads reading the behaviours up to it; the softmax is over all
items where the paper samples (10 negatives an example in the authors' code); W₁ and W₂ have no biases,
as in the paper, where that code has them; the paper's merging for diversity is not part of the model.
`time_lag` is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from model.baselines.dense_tower import DenseTower, last_state
from model.baselines.pause import PauseEmbedding
from model.baselines.settings import check_at_least, check_choice, check_share
from model.batch import SequenceBatch
from model.dropout import Dropout
from model.losses import MAX_FULL_SOFTMAX_ITEMS
from model.noise import Noise
from model.small_embedding import SmallEmbedding

Loss = Literal["best_interest", "label_aware"]


@dataclass(frozen=True)
class ComiRecConfig:
    """Everything that shapes a ComiRec-SA model."""

    embedding_dim: int = 64  # D
    max_length: int = 50
    num_interests: int = 4  # R
    attention_hidden: int = 256
    dropout: float = 0.2
    normalize_inputs: bool = True  # LayerNorm'd item embeddings
    loss: Loss = "best_interest"
    time_lag: bool = False  # tell the interests how long it is until the next behaviour
    request_time_dropout: float = 0.1
    max_full_softmax_items: int = MAX_FULL_SOFTMAX_ITEMS
    num_negatives: int = 8_192

    def __post_init__(self) -> None:
        check_choice(self, "loss", get_args(Loss))
        check_at_least(self, 1, ("embedding_dim", "max_length", "num_interests", "attention_hidden"))
        check_share(self, ("dropout", "request_time_dropout"))


class ComiRec(DenseTower):
    """Self-attentive interests, each an average of the behaviours' embeddings."""

    def __init__(self, config: ComiRecConfig, num_items: int) -> None:
        super().__init__(config, num_items, normalize_inputs=config.normalize_inputs)
        self.config = config
        self.num_routes = config.num_interests
        self.position_table = SmallEmbedding(config.max_length, config.embedding_dim)
        nn.init.normal_(self.position_table.weight, std=0.02)
        self.of_score = nn.Sequential(
            nn.Linear(config.embedding_dim, config.attention_hidden, bias=False),  # W₁
            nn.Tanh(),
            nn.Linear(config.attention_hidden, config.num_interests, bias=False),  # W₂
        )
        self.distance_bias = SmallEmbedding(config.max_length, config.num_interests)  # 0..n-1 behaviours back
        nn.init.zeros_(self.distance_bias.weight)
        self.dropout = Dropout(config.dropout)
        if config.time_lag:
            self.pause = PauseEmbedding(
                config.embedding_dim, request_time_dropout=config.request_time_dropout
            )

    def user_embeddings(self, batch: SequenceBatch, noise: Noise | None = None) -> torch.Tensor:
        """(B, R, D) every interest after the last behaviour, one search each."""
        interests = self.interests(batch)
        return last_state(interests.flatten(2), batch.length).unflatten(-1, interests.shape[2:])

    def states(self, batch: SequenceBatch) -> torch.Tensor:
        """(B, N, D) after each position, the interest of the largest norm."""
        interests = self.interests(batch)
        return select_interest(interests, interests.square().sum(dim=-1))

    def training_loss(self, batch: SequenceBatch) -> torch.Tensor:
        """Softmax over the items at every position that has a target."""
        assert batch.target is not None
        supervised = batch.target != 0  # (B, N)
        interests, target = self.interests(batch)[supervised], batch.target[supervised]  # (P, R, D), (P,)
        if self.config.loss == "label_aware":
            score = interests @ self.item_embeddings()[target - 1][:, :, None]  # (P, R, 1)
            return self.items.loss(select_interest(interests, score.squeeze(-1)), target)
        return self.items.loss(interests, target)

    def interests(self, batch: SequenceBatch) -> torch.Tensor:
        """(B, N, R, D) V after each position, read from the behaviours up to it."""
        length = batch.item_index.shape[1]
        sequence = self.dropout(self.items.embed(batch.item_index))  # (B, N, D)
        score = self.of_score(sequence + self.position_table.weight[:length])  # (B, N, R)
        position = torch.arange(length, device=sequence.device)
        back = position[:, None] - position[None, :]  # (N, N)
        bias = self.distance_bias(back.clamp(min=0)).permute(2, 0, 1)  # (R, N, N)
        score = score.transpose(1, 2)[:, :, None, :] + bias  # (B, R, N, N)
        weight = score.masked_fill(back < 0, float("-inf")).softmax(dim=-1)
        interests = (weight @ sequence[:, None]).transpose(1, 2)  # (B, N, R, D)
        if self.config.time_lag:
            interests = interests + self.pause(batch)[:, :, None]
        return interests


def select_interest(interests: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    """The interest of the largest score.   interests: (..., R, D)   score: (..., R)   -> (..., D)"""
    best = score.argmax(dim=-1)[..., None, None].expand(*interests.shape[:-2], 1, interests.shape[-1])
    return interests.gather(-2, best).squeeze(-2)
