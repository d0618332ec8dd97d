"""What of the history bears on the session's interest h_s: h_l, in two ways (Eq. 20, 21)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from model.sessions import NUM_LAG_BUCKETS
from model.small_embedding import SmallEmbedding

HistoryAttention = Literal["activation_unit", "multi_head"]


class ActivationUnit(nn.Module):
    """What of the history matters to h_s, each behaviour weighed by a small network (Eq. 20, 21).

    Eq. 20 divides raw FFN outputs by their sum, which may be zero or negative; here the FFN's outputs
    go through a softmax together with one learned score for "none of it", which also gives users
    without history a well-defined h_l = 0.
    """

    def __init__(self, dim: int, *, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(4 * dim, hidden)
        self.second = nn.Linear(hidden, 1)
        self.of_lag = SmallEmbedding(NUM_LAG_BUCKETS, hidden)
        self.none_score = nn.Parameter(torch.zeros(1))
        nn.init.zeros_(self.of_lag.weight)

    def forward(
        self,
        history: torch.Tensor,
        session_interest: torch.Tensor,
        *,
        allowed: torch.Tensor,
        lag: torch.Tensor | None,
    ) -> torch.Tensor:
        """h_l, the part of the history that bears on h_s (Eq. 21).

        history: (B, N, D) x_j   session_interest: (B, P, D) h_s   allowed, lag: (B, P, N)   -> (B, P, D)
        """
        score = self.scores(history, session_interest, lag).masked_fill(~allowed, float("-inf"))  # (B, P, N)
        none = self.none_score.expand(*score.shape[:2], 1)
        weight = torch.cat([score, none], dim=-1).softmax(dim=-1)[..., :-1]
        return weight @ history

    def scores(
        self, history: torch.Tensor, session_interest: torch.Tensor, lag: torch.Tensor | None
    ) -> torch.Tensor:
        """FFN(concat([x_j, x_j - h_s, x_j * h_s, h_s])) for every pair (Eq. 20).   -> (B, P, N)

        The first layer is linear, so its four blocks of columns can be applied before the pairs are
        formed: (W₁ + W₂)·x_j + (W₄ - W₂)·h_s + W₃·(x_j * h_s), and no (B, P, N, 4D) is ever built.
        """
        of_item, of_difference, of_product, of_interest = self.first.weight.chunk(4, dim=1)  # (hidden, D)
        item_part = F.linear(history, of_item + of_difference)  # (B, N, hidden)
        interest_part = F.linear(session_interest, of_interest - of_difference, self.first.bias)
        weighted = history[:, :, None, :] * of_product  # (B, N, hidden, D)
        product_part = session_interest @ weighted.flatten(1, 2).transpose(1, 2)  # (B, P, N * hidden)
        product_part = product_part.unflatten(-1, weighted.shape[1:3])  # (B, P, N, hidden)
        activation = product_part + item_part[:, None] + interest_part[:, :, None]
        if lag is not None:
            activation = activation + self.of_lag(lag)
        return self.second(F.silu(activation)).squeeze(-1)


class MultiHeadHistory(nn.Module):
    """What of the history matters to h_s, by multi-head attention from h_s to the history.

    In place of Eq. 20's network for every pair: its cost does not grow with a hidden width, which makes
    long histories affordable. A learned key stands for "none of it", with the value 0.
    """

    def __init__(self, dim: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.of_query = nn.Linear(dim, dim)
        self.of_key_value = nn.Linear(dim, 2 * dim)
        self.of_lag = SmallEmbedding(NUM_LAG_BUCKETS, num_heads)
        self.none_score = nn.Parameter(torch.zeros(num_heads))
        nn.init.zeros_(self.of_lag.weight)

    def forward(
        self,
        history: torch.Tensor,
        session_interest: torch.Tensor,
        *,
        allowed: torch.Tensor,
        lag: torch.Tensor | None,
    ) -> torch.Tensor:
        """As of ActivationUnit."""
        query = self._heads(self.of_query(session_interest))
        key, value = (self._heads(part) for part in self.of_key_value(history).chunk(2, dim=-1))
        score = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])  # (B, heads, P, N)
        if lag is not None:
            score = score + self.of_lag(lag).permute(0, 3, 1, 2)
        score = score.masked_fill(~allowed[:, None], float("-inf"))
        none = self.none_score[:, None, None].expand(*score.shape[:3], 1)
        weight = torch.cat([score, none], dim=-1).softmax(dim=-1)[..., :-1]
        return (weight @ value).transpose(1, 2).flatten(2)

    def _heads(self, values: torch.Tensor) -> torch.Tensor:
        return values.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
