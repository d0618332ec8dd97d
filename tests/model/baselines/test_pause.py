from __future__ import annotations

import numpy as np
import torch

from model.baselines.pause import PauseEmbedding
from model.batch import UNKNOWN_TIME, Sequence, SequenceBatch, collate
from tests.model.baselines.tiny_models import with_random_targets


def _batch(request_time: int) -> SequenceBatch:
    return collate(
        [
            Sequence(np.array([1, 2, 3]), np.array([100, 100, 107]), request_time),
            Sequence(np.array([4]), np.array([5])),
        ],
        max_length=6,
    )


def _pause(**settings: float) -> PauseEmbedding:
    pause = PauseEmbedding(1, **settings)
    with torch.no_grad():
        pause.of_bucket.weight[:, 0] = torch.arange(32)
    return pause


def test_each_behaviour_knows_the_pause_after_it() -> None:
    """0 s is bucket 1, 7 s bucket 4, 8 s bucket 5; unknown and padding bucket 0."""
    pause = _pause().eval()
    pause.seen.fill_(True)
    assert pause(_batch(115))[..., 0].tolist() == [[1, 4, 5], [0, 0, 0]]
    assert pause(_batch(UNKNOWN_TIME))[..., 0].tolist() == [[1, 4, 0], [0, 0, 0]]


def test_a_pause_that_training_never_saw_counts_as_unknown() -> None:
    pause = _pause(request_time_dropout=0.0).train()
    pause(with_random_targets(_batch(107)))  # pauses of 0, 7 and 0 s
    pause.eval()
    assert pause(_batch(107))[..., 0].tolist() == [[1, 4, 1], [0, 0, 0]]
    assert pause(_batch(115))[..., 0].tolist() == [[1, 4, 0], [0, 0, 0]]


def test_training_hides_some_pauses_at_single_positions() -> None:
    pause = _pause(request_time_dropout=0.5).train()
    sequence = Sequence(np.ones(2_000, dtype=int), 7 * np.arange(2_000), 14_000)
    hidden = pause(with_random_targets(collate([sequence], max_length=2_000)))[0, :, 0] == 0
    assert 0.4 < hidden.float().mean() < 0.6
