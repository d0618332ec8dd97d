"""Training batches: windows of a user's sequence in which one pass supervises many positions.

The last `targets_per_window` positions of a window are targets: all of them for dense training (every
position learns from one pass), one for the paper's form (one window for each target, its last position).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from model.batch import PADDING_INDEX, UNKNOWN_TIME, SequenceBatch
from model.data.interactions import Interactions

_BATCHES_SORTED_TOGETHER = 50


class TrainingWindows:
    """Cuts every user's transitions (behaviour → next one) into windows, differently in each epoch."""

    def __init__(self, train: Interactions, *, max_length: int, targets_per_window: int) -> None:
        if not 1 <= targets_per_window <= max_length:
            raise ValueError(
                f"targets_per_window must be in 1..{max_length} (max_length), got {targets_per_window}"
            )
        self.train = train
        self.max_length = max_length
        self.targets_per_window = targets_per_window
        num_transitions = np.diff(train.offsets) - 1
        self.users = np.flatnonzero(num_transitions > 0)
        self.num_transitions = num_transitions[self.users]  # (users,)
        if len(self.users) == 0:
            raise ValueError("no user has two training interactions, so there is nothing to predict")

    @property
    def num_targets(self) -> int:
        """Supervised positions in an epoch: each transition once."""
        return int(self.num_transitions.sum())

    def cut(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row ranges of one epoch's windows.

        Each transition is a target exactly once; the first cut of each user is random, so that over
        epochs every transition is seen with contexts of different lengths.
        -> start (W,), end (W,) rows of inputs, supervised (W,) how many positions at the end are targets
        """
        step = self.targets_per_window
        first_cut = rng.integers(1, step + 1, size=len(self.users))
        num_windows = 1 + np.maximum(self.num_transitions - first_cut + step - 1, 0) // step
        user = np.repeat(np.arange(len(self.users)), num_windows)  # (W,)
        number = np.arange(len(user)) - np.repeat(np.cumsum(num_windows) - num_windows, num_windows)
        end = np.minimum(first_cut[user] + number * step, self.num_transitions[user])
        begin = np.maximum(first_cut[user] + (number - 1) * step, 0)
        base = self.train.offsets[self.users][user]
        start = np.maximum(end - self.max_length, 0)
        return base + start, base + end, end - begin

    def epoch(self, seed: int, epoch: int, *, batch_size: int) -> list[np.ndarray]:
        """The windows of one epoch as batches of (start, end, supervised) rows; a function of seed and epoch.

        -> list of (batch_size, 3) arrays. Windows of similar length are put together to save padding.
        """
        rng = np.random.default_rng([seed, epoch])
        windows = np.stack(self.cut(rng), axis=1)  # (W, 3)
        windows = windows[rng.permutation(len(windows))]
        batches: list[np.ndarray] = []
        chunk = batch_size * _BATCHES_SORTED_TOGETHER
        for first in range(0, len(windows), chunk):
            together = windows[first : first + chunk]
            together = together[np.argsort(together[:, 1] - together[:, 0], kind="stable")]
            batches += [together[at : at + batch_size] for at in range(0, len(together), batch_size)]
        return [batches[index] for index in rng.permutation(len(batches))]

    def batch(self, windows: np.ndarray) -> SequenceBatch:
        """Gather windows into padded tensors.   windows: (B, 3) of `epoch`"""
        start, end, supervised = windows.T
        length = end - start
        column = np.arange(length.max())
        real = column < length[:, None]  # (B, N)
        row = np.where(real, start[:, None] + column, 0)
        is_target = real & (column >= (length - supervised)[:, None])
        return SequenceBatch(
            item_index=_long(np.where(real, self.train.item_index[row], PADDING_INDEX)),
            timestamp=_long(np.where(real, self.train.timestamp[row], UNKNOWN_TIME)),
            length=_long(length),
            request_time=_long(self.train.timestamp[end]),
            target=_long(
                np.where(is_target, self.train.item_index[np.where(real, row + 1, 0)], PADDING_INDEX)
            ),
        )

    def batches(self, seed: int, epoch: int, *, batch_size: int, skip: int = 0) -> Iterator[SequenceBatch]:
        """The batches of one epoch, from number `skip` on."""
        for windows in self.epoch(seed, epoch, batch_size=batch_size)[skip:]:
            yield self.batch(windows)


def _long(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))
