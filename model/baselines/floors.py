"""Floors: what counting alone achieves, and what any trained model must clear.

Popularity recommends everyone the same; Markov what most often followed the last item; item-kNN what
most often stands near the last items, by cosine. Only popularity has embeddings and can be served: the
others are sparse M × M matrices, and a factorisation small enough for an index would be another model.

Both keep the `max_neighbours` strongest entries of each row, so that memory is M · max_neighbours, and
back off to popularity below them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from model.baselines.pair_counts import count_pairs
from model.baselines.settings import check_at_least
from model.batch import SequenceBatch
from model.counted import CountedTower
from model.data.interactions import Interactions
from model.noise import Noise


@dataclass(frozen=True)
class PopularityConfig:
    """Nothing to choose."""


class Popularity(CountedTower):
    """Items in the order of how often they were consumed, the same for everyone.

    The score is the place in that order, evenly from 1 (the most popular) down to 1 / M: counts themselves
    repeat and span orders of magnitude, which an index builder rightly takes for a broken item tower.
    Items with equal counts keep the order of their indices, as in a checkpoint's list of popular items.
    """

    def __init__(self, config: PopularityConfig, num_items: int) -> None:
        super().__init__()
        self.num_items = num_items
        self.max_length = 1
        self.embedding_dim = 1
        self.place_score = nn.Parameter(torch.zeros(num_items), requires_grad=False)  # (M,)

    def fit(self, train: Interactions) -> None:
        order = np.argsort(-train.item_counts(), kind="stable")
        score = np.empty(self.num_items, dtype=np.float32)
        score[order] = np.arange(self.num_items, 0, -1) / self.num_items
        self.place_score.data.copy_(torch.from_numpy(score))

    def score_all(self, batch: SequenceBatch) -> torch.Tensor:
        return self.place_score.repeat(len(batch.length), 1)

    def user_embedding(self, batch: SequenceBatch, noise: Noise | None = None) -> torch.Tensor:
        """(B, 1) ones"""
        return self.place_score.new_ones(len(batch.length), 1)

    def item_embeddings(self) -> torch.Tensor:
        """(M, 1)"""
        return self.place_score[:, None]


class Neighbours(CountedTower):
    """Adds up, over the last items of a sequence, the weights that each gives to its neighbours."""

    neighbour: torch.Tensor  # (M + 1, K) int32 rows 0..M-1, row m of it for item index m
    weight: torch.Tensor  # (M + 1, K), 0 where an item has fewer neighbours
    popularity: torch.Tensor  # (M,) share of all interactions

    def __init__(
        self, num_items: int, *, max_length: int, max_neighbours: int, recency: float, backoff: float
    ) -> None:
        super().__init__()
        self.num_items = num_items
        self.max_length = max_length
        self.recency = recency
        self.backoff = backoff
        shape = (num_items + 1, min(max_neighbours, num_items))
        self.register_buffer("neighbour", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("weight", torch.zeros(shape))
        self.register_buffer("popularity", torch.zeros(num_items))

    def score_all(self, batch: SequenceBatch) -> torch.Tensor:
        """Σ_j recency^(how far back j is) · weight(x_j, item) + backoff · popularity(item)   -> (B, M)"""
        column = torch.arange(batch.item_index.shape[1], device=batch.item_index.device)
        back = (batch.length[:, None] - 1 - column).clamp(min=0)  # (B, N)
        faded = (self.recency**back)[:, :, None]
        weight = self.weight[batch.item_index] * faded  # (B, N, K), 0 at padding
        scores = (self.backoff * self.popularity).repeat(len(batch.length), 1)
        return scores.scatter_add_(1, self.neighbour[batch.item_index].flatten(1).long(), weight.flatten(1))

    def _keep_strongest(self, first: int, weight: np.ndarray) -> None:
        """Store the rows of items first + 1, first + 2, ...   weight: (b, M)"""
        value, row = torch.from_numpy(weight).to(self.weight.device).topk(self.weight.shape[1], dim=1)
        at = slice(first + 1, first + 1 + len(weight))
        self.neighbour[at] = row.int()
        self.weight[at] = value

    def _count_popularity(self, train: Interactions) -> None:
        counts = train.item_counts()
        self.popularity.copy_(torch.from_numpy(counts / max(counts.sum(), 1)))


@dataclass(frozen=True)
class MarkovConfig:
    """backoff: transitions added to every item's, spread as popularity is; up to 1 they only break ties."""

    max_neighbours: int = 500
    backoff: float = 1.0

    def __post_init__(self) -> None:
        check_at_least(self, 1, ("max_neighbours",))
        check_at_least(self, 0, ("backoff",))


class Markov(Neighbours):
    """First-order transitions: score(i, j) = count(i → j) + backoff · popularity(j)."""

    def __init__(self, config: MarkovConfig, num_items: int) -> None:
        super().__init__(
            num_items,
            max_length=1,
            max_neighbours=config.max_neighbours,
            recency=1.0,
            backoff=config.backoff,
        )

    def fit(self, train: Interactions) -> None:
        self._count_popularity(train)
        for first, counts in count_pairs(train, (1,)):
            self._keep_strongest(first, counts)


@dataclass(frozen=True)
class ItemKNNConfig:
    """Two items are near each other when one user consumed them at most `window` behaviours apart."""

    max_length: int = 20  # last items that are asked for their neighbours
    window: int = 20
    max_neighbours: int = 200
    shrinkage: float = 20.0  # added to each item's count, against rare items that met by chance
    recency: float = 0.8  # the weight of a behaviour beside that of the one after it
    backoff: float = 0.01

    def __post_init__(self) -> None:
        check_at_least(self, 1, ("max_length", "window", "max_neighbours"))
        check_at_least(self, 0, ("shrinkage", "backoff"))
        if not 0 < self.recency <= 1:
            raise ValueError(f"recency must be in (0, 1], got {self.recency}")


class ItemKNN(Neighbours):
    """weight(i, j) = count(i, j) / √((count(i) + shrinkage)·(count(j) + shrinkage)): a cosine."""

    def __init__(self, config: ItemKNNConfig, num_items: int) -> None:
        super().__init__(
            num_items,
            max_length=config.max_length,
            max_neighbours=config.max_neighbours,
            recency=config.recency,
            backoff=config.backoff,
        )
        self.window, self.shrinkage = config.window, config.shrinkage

    def fit(self, train: Interactions) -> None:
        self._count_popularity(train)
        norm = np.sqrt(np.maximum(train.item_counts() + self.shrinkage, 1)).astype(np.float32)  # (M,)
        distances = [sign * distance for distance in range(1, self.window + 1) for sign in (1, -1)]
        for first, counts in count_pairs(train, distances):
            row = np.arange(len(counts))
            counts[row, first + row] = 0  # an item is not its own neighbour
            self._keep_strongest(first, counts / (norm[first : first + len(counts), None] * norm))
