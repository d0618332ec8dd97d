from __future__ import annotations

import numpy as np
import pytest

from model.data.interactions import DataError, Interactions
from model.data.time_ties import shuffle_time_ties


def _log(timestamp: list[int]) -> Interactions:
    return Interactions.create(
        user_ids=["a", "b"],
        item_ids=[f"i{number}" for number in range(12)],
        offsets=np.array([0, 8, 12]),
        item_index=np.arange(1, 13, dtype=np.int32),
        timestamp=np.array(timestamp, dtype=np.int64),
    )


def test_only_rows_of_one_user_and_one_moment_change_places() -> None:
    log = _log([5, 9, 9, 9, 9, 9, 9, 10, 10, 10, 10, 20])
    shuffled = shuffle_time_ties(log, seed=1)
    assert shuffled.item_index[[0, 7, 11]].tolist() == [1, 8, 12]
    assert sorted(shuffled.item_index[1:7]) == [2, 3, 4, 5, 6, 7]
    assert sorted(shuffled.item_index[8:11]) == [9, 10, 11]
    assert np.array_equal(shuffled.timestamp, log.timestamp)
    assert not np.array_equal(shuffled.item_index, log.item_index)
    assert shuffled.fingerprint != log.fingerprint


def test_the_seed_decides() -> None:
    log = _log([1] * 12)
    first, again, other = (shuffle_time_ties(log, seed) for seed in (1, 1, 2))
    assert np.array_equal(first.item_index, again.item_index)
    assert not np.array_equal(first.item_index, other.item_index)


def test_every_order_of_a_tie_is_as_likely() -> None:
    log = _log([1, 1, *range(2, 8), *range(4)])
    swapped = sum(int(shuffle_time_ties(log, seed).item_index[0] == 2) for seed in range(400))
    assert 140 < swapped < 260


def test_without_ties_nothing_moves_and_without_times_it_is_refused() -> None:
    log = _log([*range(8), *range(4)])
    assert shuffle_time_ties(log, seed=3).fingerprint == log.fingerprint
    with pytest.raises(DataError, match="needs times"):
        shuffle_time_ties(_log([-1] * 12), seed=3)
