"""How long a set of jobs will still take, from how fast those seen so far went."""

from __future__ import annotations

from collections.abc import Mapping


class TimeLeft:
    """Jobs of one kind are taken to last equally long, a kind not seen yet as long as the others' mean.

    kinds: job -> kind, for the jobs that are not done yet
    """

    def __init__(self, kinds: Mapping[str, str]) -> None:
        self.kinds = dict(kinds)
        self.first: dict[str, tuple[float, float]] = {}  # job -> (time, share) when first heard of
        self.last: dict[str, tuple[float, float]] = {}

    def heard(self, job: str, share: float, now: float) -> None:
        """A job says what share of it is done.   now: seconds on any clock that does not jump"""
        self.first.setdefault(job, (now, share))
        self.last[job] = (now, share)

    def seconds(self, num_processes: int) -> float | None:
        """Seconds until all are done, `num_processes` at a time; None while nothing can be said."""
        lengths: dict[str, list[float]] = {}
        for job, (now, share) in self.last.items():
            began, share_then = self.first[job]
            if share > share_then and now > began:
                lengths.setdefault(self.kinds[job], []).append((now - began) / (share - share_then))
        if not lengths:
            return None
        of_kind = {kind: sum(seen) / len(seen) for kind, seen in lengths.items()}
        typical = sum(of_kind.values()) / len(of_kind)
        left = [
            (1 - self.last.get(job, (0.0, 0.0))[1]) * of_kind.get(kind, typical)
            for job, kind in self.kinds.items()
        ]
        return max(sum(left) / num_processes, max(left, default=0.0))
