"""What every tower engine is to its callers, and the plain one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch

from model.batch import PaddedSequences, SequenceBatch
from model.noise import request_noise, route_keys
from model.two_tower import TwoTower


class TowerEngine(ABC):
    """Runs the user tower of one model, in evaluation mode, under the noise of the requests' keys.

    name: says which engine and, where there are several, which variant of it
    tolerance: how far a score may lie from the plain engine's, as a share of the user's largest score
    """

    name: str
    tolerance: float = 1e-3

    def __init__(self, model: TwoTower) -> None:
        if model.training:
            raise ValueError("a tower engine serves a model in evaluation mode: call model.eval() first")
        self.model = model
        self.device = next(model.parameters()).device

    @abstractmethod
    def user_embeddings(self, batch: SequenceBatch, keys: Sequence[int]) -> torch.Tensor:
        """(B, R, D) one embedding for each route of each user.

        keys: one 64-bit key a request (`model.noise.request_key`), from which all of its noise follows
        """

    def embed(self, padded: PaddedSequences, keys: Sequence[int]) -> np.ndarray:
        """`user_embeddings` from arrays to an array.   -> (B, R, D) float32"""
        return self.user_embeddings(padded.tensors(), keys).float().cpu().numpy()

    def user_embedding(self, batch: SequenceBatch, keys: Sequence[int]) -> torch.Tensor:
        """(B, D) of the first route."""
        return self.user_embeddings(batch, keys)[:, 0]


class EagerTower(TowerEngine):
    """The model's own code: the reference of every other engine, and the only one that runs any model."""

    name = "eager"

    @torch.inference_mode()
    def user_embeddings(self, batch: SequenceBatch, keys: Sequence[int]) -> torch.Tensor:
        """(B, R, D)"""
        model = self.model
        noise = None
        if model.num_steps > 0:
            every = route_keys(keys, model.num_routes)
            noise = request_noise(every, batch.item_index.shape[1], model.noise_dim, device=self.device)
        return model.user_embeddings(batch.to(self.device), noise)
