from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.windows import TrainingWindows
from tests.model.conftest import make_log


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 23), min_size=1, max_size=8).filter(lambda ls: max(ls) > 1),
    max_length=st.integers(1, 9),
    data=st.data(),
)
def test_every_transition_is_a_target_once_with_its_own_past(
    lengths: list[int], max_length: int, data: st.DataObject
) -> None:
    per_window = data.draw(st.integers(1, max_length))
    log = make_log([list(range(1, length + 1)) for length in lengths], num_items=30)
    windows = TrainingWindows(log, max_length=max_length, targets_per_window=per_window)
    seen: list[tuple[int, int]] = []
    for rows in windows.epoch(3, 0, batch_size=4):
        batch = windows.batch(rows)
        assert batch.item_index.shape[1] <= max_length
        assert batch.target is not None
        for row, (start, _, supervised) in enumerate(rows):
            user = int(np.searchsorted(log.offsets, start, side="right")) - 1
            items, target = batch.item_index[row].tolist(), batch.target[row].tolist()
            assert sum(item != 0 for item in target) == supervised <= per_window
            for item, following in zip(items, target, strict=True):
                if following:
                    assert following == item + 1  # each user's items count up, so the next is certain
                    seen.append((user, following))
    assert sorted(seen) == sorted(
        (u, item) for u, length in enumerate(lengths) for item in range(2, length + 1)
    )
    assert windows.num_targets == len(seen)


def test_request_time_is_the_time_of_the_behaviour_after_the_window() -> None:
    log = make_log([[1, 2, 3, 4]], num_items=5, seconds_apart=10)
    windows = TrainingWindows(log, max_length=3, targets_per_window=1)
    for rows in windows.epoch(0, 0, batch_size=1):
        batch = windows.batch(rows)
        last = int(batch.length[0]) - 1
        assert int(batch.request_time[0]) == int(batch.timestamp[0, last]) + 10


def test_epochs_differ_and_repeat_with_their_seed() -> None:
    log = make_log([list(range(1, 30))], num_items=30)
    windows = TrainingWindows(log, max_length=10, targets_per_window=10)
    first, again, second = (windows.epoch(1, epoch, batch_size=4) for epoch in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, second, strict=False))


def test_nothing_to_predict_is_refused() -> None:
    with pytest.raises(ValueError, match="no user has two"):
        TrainingWindows(make_log([[1], [2]], num_items=3), max_length=5, targets_per_window=5)
    with pytest.raises(ValueError, match=r"targets_per_window must be in 1\.\.5"):
        TrainingWindows(make_log([[1, 2]], num_items=3), max_length=5, targets_per_window=6)
