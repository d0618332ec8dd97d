"""The time lag for models that are not T2Diff: the pause between each behaviour and the next one.

As in T2Diff, the pause after the last behaviour ends at the request in serving and at the target in
training, is hidden now and then while training (here at single positions, for a served sequence
lacks the last pause only), and counts as unknown when training never saw one of its length.
"""

from __future__ import annotations

import torch
from torch import nn

from model.batch import SequenceBatch
from model.sessions import NUM_LAG_BUCKETS, lag_bucket
from model.small_embedding import SmallEmbedding


class PauseEmbedding(nn.Module):
    """One learned vector for each log₂ bucket of the pause that follows a behaviour, zero at first."""

    seen: torch.Tensor  # (NUM_LAG_BUCKETS,) bool, which buckets training has met before a target

    def __init__(self, dim: int, *, request_time_dropout: float = 0.1) -> None:
        super().__init__()
        self.request_time_dropout = request_time_dropout
        self.of_bucket = SmallEmbedding(NUM_LAG_BUCKETS, dim)
        nn.init.zeros_(self.of_bucket.weight)
        self.register_buffer("seen", torch.zeros(NUM_LAG_BUCKETS, dtype=torch.bool))

    def forward(self, batch: SequenceBatch) -> torch.Tensor:
        """(B, N, D) to add to, or stand beside, each behaviour's embedding."""
        bucket = lag_bucket(batch.next_time, batch.timestamp)  # (B, N)
        if self.training and batch.target is not None:
            hidden = torch.rand(bucket.shape, device=bucket.device) < self.request_time_dropout
            bucket = bucket.masked_fill(hidden, 0)
            self.seen[bucket[batch.target != 0]] = True
        else:
            bucket = bucket * self.seen[bucket]
        return self.of_bucket(bucket)
