"""A batch's loss and gradients when several processes have a part of the batch each.

The gradients are added up after the backward pass. torch's DistributedDataParallel begins while it runs, but
the largest gradient, the item table's, is ready at its very end, and all others are a megabyte. It would also
have to be told which parameters some settings leave without a gradient, and of a table whose rows are spread.
"""

from __future__ import annotations

import torch

from model.batch import SequenceBatch
from model.batch_part import BatchPart, computing_part
from model.ranks import Ranks
from model.two_tower import TwoTower

SENT_ALONE = 1 << 20
"""A gradient of so many numbers is not copied to travel with others."""


class SplitLoss:
    """The training loss of `model`, split over `ranks`; with one of them, the loss and nothing else.

    apart: a parameter of which each process has rows of its own, whose gradient is complete in each
    """

    def __init__(self, model: TwoTower, ranks: Ranks, *, apart: torch.Tensor | None = None) -> None:
        self.model, self.ranks, self.apart = model, ranks, apart

    def share(self, batch: SequenceBatch) -> torch.Tensor:
        """This process's share of the loss of `batch`: the shares of all add up to it.

        batch: the whole batch, the same in every process   -> scalar
        """
        size = len(batch.length)
        if self.ranks.count == 1:
            return self.model.training_loss(batch)
        if size < self.ranks.count:  # too few rows to split: every process computes them all
            return self.model.training_loss(batch) / self.ranks.count
        rows = self.ranks.rows(size)
        with computing_part(BatchPart(rows, size, self.ranks.add_up)):
            return self.model.training_loss(batch.rows(rows))

    def backward(self, share: torch.Tensor) -> None:
        """Leave the whole batch's gradients in the parameters of every process."""
        share.backward()
        if self.ranks.count == 1:
            return
        gradients = [
            parameter.grad
            for parameter in self.model.parameters()
            if parameter.grad is not None and parameter is not self.apart
        ]
        small = [gradient for gradient in gradients if gradient.numel() < SENT_ALONE]
        for gradient in gradients:
            if gradient.numel() >= SENT_ALONE:
                self.ranks.add_up_in_place(gradient)
        together = self.ranks.add_up_in_place(torch.cat([gradient.flatten() for gradient in small]))
        for gradient, total in zip(small, together.split([one.numel() for one in small]), strict=True):
            gradient.copy_(total.view_as(gradient))
