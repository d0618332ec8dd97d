"""Rows that cannot be used: counted, the first one named, and refused when they are too many."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from model.data.interactions import DataError


class BadRows:
    """The tally of one log.

    max_share: the share of unusable rows from which the log is refused (exceeding it, not reaching it)
    """

    def __init__(self, max_share: float) -> None:
        self._max_share = max_share
        self._first = ""
        self.rows = 0
        self.bad = 0

    def add(self, count: int, path: Path, example: Callable[[], tuple[str, str]]) -> None:
        """Count bad rows.   example: tells the place and the problem of the first of them, asked only once"""
        if count and not self._first:
            place, problem = example()
            self._first = f"{path} {place}: {problem}"
        self.rows += count
        self.bad += count

    def add_good(self, count: int) -> None:
        """Count rows that can be used."""
        self.rows += count

    def add_counts(self, rows: int, bad: int, first: str) -> None:
        """Count what another tally counted of the rows that follow.   first: its first bad row in words"""
        self._first = self._first or first
        self.rows += rows
        self.bad += bad

    def take(self) -> tuple[int, int, str]:
        """Rows, bad ones among them and the first of these in words; the tally begins anew."""
        taken = (self.rows, self.bad, self._first)
        self.rows, self.bad, self._first = 0, 0, ""
        return taken

    def check(self, max_share: float | None = None) -> None:
        """Raise DataError when more than `max_share` (default: the log's) of the rows so far are bad."""
        limit = self._max_share if max_share is None else max_share
        if self.bad > limit * self.rows:
            raise DataError(
                f"{self._first}; {self._share()} cannot be used, more than max_bad_share = "
                f"{self._max_share:.2%}: correct the log or raise --max-bad-share"
            )

    def note(self) -> str:
        """What the report says about rows left out, empty when there are none."""
        return f"{self._share()} left out as unusable, the first {self._first}" if self.bad else ""

    def _share(self) -> str:
        return f"{self.bad:,} of {self.rows:,} rows ({self.bad / self.rows:.2%})"
