"""Models that are counted, not trained: the floors that a trained model must clear."""

from __future__ import annotations

from abc import abstractmethod

import torch

from model.batch import SequenceBatch
from model.data.interactions import Interactions
from model.noise import Noise
from model.two_tower import TwoTower


class CountedTower(TwoTower):
    """One look at the training data instead of epochs, and scores of its own instead of two embeddings.

    The trainer calls `fit` once, the evaluator `score_all`. Such a model can be served only when it also
    has embeddings whose inner products order the items as `score_all` does.
    """

    embedding_dim = 0

    @abstractmethod
    def fit(self, train: Interactions) -> None:
        """Count."""

    @abstractmethod
    def score_all(self, batch: SequenceBatch) -> torch.Tensor:
        """(B, M) the score of item index m + 1 in column m, larger being better; the caller may change it."""

    def user_embedding(self, batch: SequenceBatch, noise: Noise | None = None) -> torch.Tensor:
        raise ValueError(_NO_EMBEDDINGS.format(name=type(self).__name__))

    def item_embeddings(self) -> torch.Tensor:
        raise ValueError(_NO_EMBEDDINGS.format(name=type(self).__name__))

    def training_loss(self, batch: SequenceBatch) -> torch.Tensor:
        raise TypeError(f"{type(self).__name__} is counted by fit, not trained by a loss")


_NO_EMBEDDINGS = (
    "{name} scores items without embeddings, so it can be evaluated but not served: train another"
)
