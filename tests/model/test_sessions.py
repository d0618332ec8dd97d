from __future__ import annotations

import torch

from model.batch import UNKNOWN_TIME
from model.sessions import NUM_LAG_BUCKETS, history_mask, lag_bucket, session_mask, session_start


def test_session_is_the_last_k_behaviours_of_each_position() -> None:
    start = session_start(torch.arange(5)[None], session_length=3, session_gap_seconds=None)
    assert start.tolist() == [[0, 0, 0, 1, 2]]


def test_session_also_breaks_at_a_long_pause() -> None:
    timestamp = torch.tensor([[0, 10, 5_000, 5_010, 5_020]])
    start = session_start(timestamp, session_length=4, session_gap_seconds=60)
    assert start.tolist() == [[0, 0, 2, 2, 2]]
    start = session_start(timestamp, session_length=2, session_gap_seconds=60)
    assert start.tolist() == [[0, 0, 2, 2, 3]]


def test_unknown_times_do_not_break_a_session() -> None:
    timestamp = torch.tensor([[0, UNKNOWN_TIME, 10**9]])
    assert session_start(timestamp, session_length=3, session_gap_seconds=60).tolist() == [[0, 0, 0]]


def test_session_and_history_share_out_the_sequence_up_to_the_position() -> None:
    start, position = torch.tensor([[2]]), torch.tensor([[3]])
    assert session_mask(start, position, 5).tolist() == [[[False, False, True, True, False]]]
    assert history_mask(start, 5).tolist() == [[[True, True, False, False, False]]]


def test_lag_buckets_double() -> None:
    lags = torch.tensor([0, 1, 2, 3, 4, 7, 8, 3_600, 2**29, 2**40])
    assert lag_bucket(lags + 5, torch.full_like(lags, 5)).tolist() == [1, 2, 3, 3, 4, 4, 5, 13, 31, 31]
    assert NUM_LAG_BUCKETS == 32


def test_unknown_and_backward_lags() -> None:
    later = torch.tensor([UNKNOWN_TIME, 10, 10])
    earlier = torch.tensor([10, UNKNOWN_TIME, 20])
    assert lag_bucket(later, earlier).tolist() == [0, 0, 1]
