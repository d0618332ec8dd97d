"""A batch's loss and gradients when several processes have a part of the batch each.

The gradients are added up by torch's DistributedDataParallel while they are computed. It listens to the
`forward` of a module, so the loss is one.
"""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from model.batch import SequenceBatch
from model.batch_part import BatchPart, computing_part
from model.ranks import Ranks
from model.two_tower import TwoTower


class SplitLoss:
    """The training loss of `model`, split over `ranks`; with one of them, the loss and nothing else.

    apart: a parameter of which each process has rows of its own, and so a gradient of its own
    """

    def __init__(self, model: TwoTower, ranks: Ranks, *, apart: nn.Parameter | None = None) -> None:
        self.ranks = ranks
        self.module: nn.Module = _TrainingLoss(model)
        if ranks.count > 1:
            names = [name for name, one in self.module.named_parameters() if one is apart]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.module, names)
            # settings leave some parameters without a gradient, such as those of lags without time_lag
            self.module = DistributedDataParallel(
                self.module,
                broadcast_buffers=False,
                find_unused_parameters=True,
                gradient_as_bucket_view=True,
            )
            warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")

    def share(self, batch: SequenceBatch) -> torch.Tensor:
        """This process's share of the loss of `batch`: the shares of all add up to it.

        batch: the whole batch, the same in every process   -> scalar
        """
        size = len(batch.length)
        if self.ranks.count == 1:
            loss: torch.Tensor = self.module(batch)
        elif size < self.ranks.count:  # too few rows to split: every process computes them all
            loss = self.module(batch) / self.ranks.count
        else:
            rows = self.ranks.rows(size)
            with computing_part(BatchPart(rows, size, self.ranks.add_up)):
                loss = self.module(batch.rows(rows))
        return loss

    def backward(self, share: torch.Tensor) -> None:
        """Leave the whole batch's gradients in the parameters of every process."""
        # DistributedDataParallel takes the mean over processes; what is wanted is the sum
        (share * self.ranks.count).backward()


class _TrainingLoss(nn.Module):
    def __init__(self, model: TwoTower) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: SequenceBatch) -> torch.Tensor:
        return self.model.training_loss(batch)
