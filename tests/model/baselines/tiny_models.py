"""Every trained baseline at a size that a test affords, and sequences, targets and noise for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch

from model.batch import Sequence, SequenceBatch
from model.noise import Noise, request_noise
from model.registry import MODELS, build_model
from model.two_tower import TwoTower

Model = TypeVar("Model", bound=TwoTower)
NUM_ITEMS = 30
SIZES: dict[str, dict[str, Any]] = {
    "bert4rec": {"feed_forward_hidden": 16},
    "caser": {"window": 3, "num_horizontal": 5, "num_vertical": 2},
    "comirec": {"attention_hidden": 16},
    "contrastvae": {"num_heads": 2, "feed_forward_hidden": 16},
    "dat": {"feed_forward_hidden": 32},
    "diffurec": {
        "num_steps": 4,
        "num_layers": 2,
        "num_heads": 2,
        "feed_forward_hidden": 16,
        "embedding_dropout": 0.0,
    },
    "gru4rec": {"hidden": 16},
    "mamba4rec": {"state_dim": 4, "feed_forward_hidden": 16},
    "sasrec": {"feed_forward_hidden": 16},
    "stosa": {"num_heads": 2, "feed_forward_hidden": 16},
}


def tiny_model(model_class: type[Model], num_items: int = NUM_ITEMS, **settings: Any) -> Model:
    """`settings` over those of its size, without dropout; the same weights every time."""
    name = next(name for name, (_, known) in MODELS.items() if known is model_class)
    tiny = {"embedding_dim": 8, "max_length": 6, "dropout": 0.0, **SIZES[name]}
    torch.manual_seed(0)
    model = build_model(name, {**tiny, **settings}, num_items)
    assert isinstance(model, model_class)
    return model


def make_sequences(lengths: list[int]) -> list[Sequence]:
    """Random behaviours with pauses of different lengths, each asked for a while after the last one."""
    rng = np.random.default_rng(5)
    sequences = []
    for length in lengths:
        time = 1_000 + np.cumsum(rng.integers(1, 5_000, length + 1))
        sequences.append(Sequence(rng.integers(1, NUM_ITEMS + 1, length), time[:-1], int(time[-1])))
    return sequences


def with_random_targets(batch: SequenceBatch) -> SequenceBatch:
    return replace(batch, target=torch.randint(1, NUM_ITEMS + 1, batch.item_index.shape) * batch.mask)


def with_following_targets(batch: SequenceBatch, last: list[int]) -> SequenceBatch:
    """Each position's target is the next behaviour, the last one's is given."""
    following = torch.cat([batch.item_index[:, 1:], torch.zeros_like(batch.item_index[:, :1])], dim=1)
    return replace(
        batch, target=following.scatter(1, (batch.length - 1)[:, None], torch.tensor(last)[:, None])
    )


def make_noise(model: TwoTower, keys: list[int], length: int) -> Noise | None:
    return request_noise(keys, length, model.noise_dim) if model.num_steps else None


def shake(model: Model) -> Model:
    """Give every parameter but the item table values that matter, and count every pause as seen."""
    for name, parameter in model.named_parameters():
        if "item_table" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
        else:
            torch.nn.init.normal_(parameter[1:])
    for name, buffer in model.named_buffers():
        if name.endswith("seen"):
            buffer.fill_(True)
    return model


def learn(model: TwoTower, batch: SequenceBatch, *, updates: int, learning_rate: float = 1e-2) -> None:
    """Train on one batch, again and again."""
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    model.train()
    for _ in range(updates):
        optimizer.zero_grad()
        model.training_loss(batch).backward()
        optimizer.step()
