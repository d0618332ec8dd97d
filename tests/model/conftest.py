"""Small logs and models for the tests of model/."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.data.interactions import Interactions

TINY = {
    "embedding_dim": 8,
    "max_length": 6,
    "num_steps": 4,
    "session_length": 3,
    "unet_channels": (8, 8, 8),
    "unet_step_channels": 8,
    "feed_forward_hidden": 16,
    "activation_hidden": 8,
    "dropout": 0.0,
}


def make_log(sequences: list[list[int]], *, num_items: int, seconds_apart: int = 60) -> Interactions:
    """Interactions of given item indices, one behaviour every `seconds_apart`."""
    lengths = [len(sequence) for sequence in sequences]
    return Interactions.create(
        user_ids=[f"u{number}" for number in range(len(sequences))],
        item_ids=[f"i{number}" for number in range(1, num_items + 1)],
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        item_index=np.concatenate(sequences).astype(np.int32),
        timestamp=np.concatenate(
            [1_700_000_000 + seconds_apart * np.arange(length) for length in lengths]
        ).astype(np.int64),
    )


@pytest.fixture
def cyclic_log() -> Interactions:
    """45 users who walk 1, 2, ..., 45, 1, 2, ... from different starts: the next item is certain."""
    return make_log(
        [[(start + step) % 45 + 1 for step in range(8 + start % 5)] for start in range(45)], num_items=45
    )


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
