"""How fast the trainer's step is beside straightforward loops over the same model; targets a second.

`one_target`: a sample is a prefix and the behaviour after it, as Algorithm 1 and most published code
have it; samples are gathered one by one, and each supervises its last position alone.
`same_windows`: the trainer's own windows and targets, gathered one by one, with PyTorch's own softmax
cross-entropy, dropout, embedding gradient and optimiser.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle, islice
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from model.batch import PADDING_INDEX, Sequence, SequenceBatch, collate
from model.data.dataset import Split
from model.data.interactions import Interactions
from model.data.windows import TrainingWindows
from model.dropout import Dropout
from model.linear_cross_entropy import plain_cross_entropy
from model.registry import build_model
from model.small_embedding import SmallEmbedding
from model.two_tower import TwoTower

LOOPS = ("trainer", "same_windows", "one_target")


def training_speed(
    split: Split, model_name: str, *, updates: int = 10, rounds: int = 3, batch_size: int = 16, seed: int = 0
) -> dict[str, float]:
    """Targets a second of each loop, interleaved, the median of `rounds`.   Raises ValueError for floors.

    -> loop -> targets a second
    """
    torch.manual_seed(seed)
    model = build_model(model_name, {}, len(split.train.item_ids))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"model {model_name!r} is counted, not trained, so it has no training speed")
    model.observe_item_counts(torch.from_numpy(split.train.item_counts()))
    plain = with_plain_parts(copy.deepcopy(model))
    windows = TrainingWindows(split.train, max_length=model.max_length, targets_per_window=model.max_length)
    steps = {
        "trainer": _stepper(model, cycle(_trainer_batches(windows, batch_size, seed)), fused=True),
        "same_windows": _stepper(plain, cycle(_window_batches(windows, batch_size, seed)), fused=False),
        "one_target": _stepper(
            plain, _prefix_batches(split.train, model.max_length, 16 * batch_size, seed), fused=False
        ),
    }
    speeds: dict[str, list[float]] = {loop: [] for loop in LOOPS}
    for number in range(1 + rounds):  # the first warms up
        for loop, step in steps.items():
            began = time.process_time()
            targets = sum(step() for _ in range(updates))
            if number:
                speeds[loop].append(targets / (time.process_time() - began))
    return {loop: statistics.median(found) for loop, found in speeds.items()}


def with_plain_parts(module: TwoTower) -> TwoTower:
    """The same model with PyTorch's own dropout and embedding in place of this project's, in place."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Dropout):
                setattr(parent, name, nn.Dropout(child.p))
            elif isinstance(child, SmallEmbedding):
                table = nn.Embedding(child.num_embeddings, child.embedding_dim)
                table.weight = child.weight
                setattr(parent, name, table)
    return module


def _stepper(model: TwoTower, batches: Iterator[SequenceBatch], *, fused: bool) -> Callable[[], int]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=fused)
    model.train()

    def step() -> int:
        batch = next(batches)
        if fused:
            loss = model.training_loss(batch)
        else:
            with patch("model.losses.linear_cross_entropy", plain_cross_entropy):
                loss = model.training_loss(batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        assert batch.target is not None
        return int((batch.target != PADDING_INDEX).sum())

    return step


def _trainer_batches(windows: TrainingWindows, batch_size: int, seed: int) -> Iterator[SequenceBatch]:
    return windows.batches(seed, 0, batch_size=batch_size)


def _window_batches(windows: TrainingWindows, batch_size: int, seed: int) -> Iterator[SequenceBatch]:
    train = windows.train
    for rows in windows.epoch(seed, 0, batch_size=batch_size):
        samples = []
        for start, end, supervised in rows.tolist():
            prefix = Sequence(train.item_index[start:end], train.timestamp[start:end], train.timestamp[end])
            target = [PADDING_INDEX] * (end - start)
            for place in range(end - start - supervised, end - start):
                target[place] = int(train.item_index[start + place + 1])
            samples.append((prefix, target))
        yield _with_targets(samples, windows.max_length)


def _prefix_batches(
    train: Interactions, max_length: int, batch_size: int, seed: int
) -> Iterator[SequenceBatch]:
    rng = np.random.default_rng(seed)
    lengths = np.diff(train.offsets)
    rows = np.flatnonzero(np.arange(len(train.item_index)) > np.repeat(train.offsets[:-1], lengths))
    first = np.repeat(train.offsets[:-1], lengths)
    while True:
        samples = []
        for end in islice(rng.permutation(rows).tolist(), batch_size):
            start = max(int(first[end]), end - max_length)
            prefix = Sequence(train.item_index[start:end], train.timestamp[start:end], train.timestamp[end])
            samples.append((prefix, [PADDING_INDEX] * (end - start - 1) + [int(train.item_index[end])]))
        yield _with_targets(samples, max_length)


def _with_targets(samples: list[tuple[Sequence, list[int]]], max_length: int) -> SequenceBatch:
    batch = collate([prefix for prefix, _ in samples], max_length=max_length)
    target = torch.zeros_like(batch.item_index)
    for row, (_, of_sample) in enumerate(samples):
        target[row, : len(of_sample)] = torch.tensor(of_sample)
    return replace(batch, target=target)
