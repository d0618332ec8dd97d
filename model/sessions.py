"""The current session, the history before it, and the time lag (Section 4.1 and the end of 4.3).

Every position of a sequence is read as if it were the last: its session is the run of at most k
behaviours that ends there, and everything before that run is its history.
"""

from __future__ import annotations

import torch

from model.batch import UNKNOWN_TIME

NUM_LAG_BUCKETS = 32
"""0: unknown, 1: no lag, b: a lag in [2^(b-2), 2^(b-1)) seconds, the last one open (from 17 years)."""


def session_start(
    timestamp: torch.Tensor, *, session_length: int, session_gap_seconds: int | None
) -> torch.Tensor:
    """The first position of the session that ends at each position.

    A session holds at most `session_length` behaviours (the paper's k) and, when `session_gap_seconds`
    is given, breaks where two adjacent behaviours lie further apart in time.
    timestamp: (B, N) unix seconds   -> (B, N) long
    """
    position = torch.arange(timestamp.shape[1], device=timestamp.device).expand_as(timestamp)
    start = (position - session_length + 1).clamp(min=0)
    if session_gap_seconds is None:
        return start
    known = (timestamp[:, 1:] != UNKNOWN_TIME) & (timestamp[:, :-1] != UNKNOWN_TIME)
    breaks = known & (timestamp[:, 1:] - timestamp[:, :-1] > session_gap_seconds)  # (B, N - 1)
    first = torch.zeros_like(position[:, :1])
    last_break = torch.cat([first, position[:, 1:] * breaks], dim=1).cummax(dim=1).values
    return torch.maximum(start, last_break)


def session_mask(start: torch.Tensor, positions: torch.Tensor, length: int) -> torch.Tensor:
    """True where column j is in the session of a position: start <= j <= position.

    start: (B, P)   positions: (B, P)   -> (B, P, N) bool
    """
    column = torch.arange(length, device=positions.device)
    return (column >= start[:, :, None]) & (column <= positions[:, :, None])


def history_mask(start: torch.Tensor, length: int) -> torch.Tensor:
    """True where column j lies before the session.   start: (B, P) -> (B, P, N) bool"""
    return torch.arange(length, device=start.device) < start[:, :, None]


def lag_bucket(later: torch.Tensor, earlier: torch.Tensor) -> torch.Tensor:
    """The log₂ bucket of the time lag between two behaviours; broadcasts.   -> long in 0..NUM_LAG_BUCKETS-1

    later, earlier: unix seconds or UNKNOWN_TIME
    """
    seconds = (later - earlier).clamp(min=0)
    bucket = 1 + torch.ceil(torch.log2(seconds.double() + 1)).long()
    bucket = bucket.clamp(max=NUM_LAG_BUCKETS - 1)
    return bucket * ((later != UNKNOWN_TIME) & (earlier != UNKNOWN_TIME))
