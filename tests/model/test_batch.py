from __future__ import annotations

import numpy as np
import pytest
import torch

from model.batch import UNKNOWN_TIME, Sequence, collate


def _sequence(items: list[int], request_time: int = 99) -> Sequence:
    return Sequence(np.array(items), np.array(items) * 10, request_time)


def test_collate_keeps_the_last_behaviours_and_pads_on_the_right() -> None:
    batch = collate([_sequence([1, 2, 3, 4]), _sequence([5])], max_length=3)
    assert batch.item_index.tolist() == [[2, 3, 4], [5, 0, 0]]
    assert batch.timestamp.tolist() == [[20, 30, 40], [50, UNKNOWN_TIME, UNKNOWN_TIME]]
    assert batch.length.tolist() == [3, 1]
    assert batch.mask.tolist() == [[True, True, True], [True, False, False]]


def test_next_time_is_the_following_behaviours_and_then_the_requests() -> None:
    batch = collate([_sequence([1, 2, 3], 77), _sequence([5], 88)], max_length=3)
    assert batch.next_time[0].tolist() == [20, 30, 77]
    assert int(batch.next_time[1, 0]) == 88


def test_next_item_ends_with_the_target() -> None:
    batch = collate([_sequence([1, 2, 3])], max_length=3)
    assert batch.next_item.tolist() == [[2, 3, 0]]
    with_target = type(batch)(
        batch.item_index, batch.timestamp, batch.length, batch.request_time, torch.tensor([[0, 0, 9]])
    )
    assert with_target.next_item.tolist() == [[2, 3, 9]]


def test_empty_sequences_are_refused_by_number() -> None:
    with pytest.raises(ValueError, match="sequence 1 is empty"):
        collate([_sequence([1]), _sequence([])], max_length=3)
    with pytest.raises(ValueError, match="at least one"):
        collate([], max_length=3)
