"""What a build must show before it becomes a bundle: checks with a figure and a limit, both recorded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

MIN_ANN_OVERLAP = 0.9
MAX_ZERO_SHARE = 0.01
MAX_NORM_RATIO = 100.0
MAX_DUPLICATE_SHARE = 0.1
_BLOCK_ROWS = 65_536


class QualityError(ValueError):
    """A build that is not good enough to serve; the message names every failed check."""


@dataclass(frozen=True)
class Check:
    """A figure and the limits that it must keep, both ends included.

    detail: what was seen, in words   remedy: what to do when the figure is beyond its limit
    skipped: why there is no figure; such a check neither passed nor was refused
    """

    name: str
    value: float
    at_least: float | None = None
    at_most: float | None = None
    detail: str = ""
    remedy: str = ""
    skipped: str = ""

    @property
    def passed(self) -> bool:
        """Whether there is a figure and it is within its limits; NaN never is."""
        above = self.at_least is None or self.value >= self.at_least
        return not self.skipped and above and (self.at_most is None or self.value <= self.at_most)

    @property
    def refused(self) -> bool:
        """Whether there is a figure and it is beyond its limits."""
        return not self.skipped and not self.passed

    @property
    def outcome(self) -> str:
        """passed, refused or skipped."""
        return "skipped" if self.skipped else "passed" if self.passed else "refused"

    def record(self) -> dict[str, Any]:
        """What the manifest keeps; a figure that JSON does not know becomes null."""
        value = self.value if math.isfinite(self.value) else None
        limits = {
            name: limit if limit is None or math.isfinite(limit) else None
            for name, limit in (("at_least", self.at_least), ("at_most", self.at_most))
        }
        return {**asdict(self), "value": value, **limits, "passed": self.passed, "outcome": self.outcome}

    def __str__(self) -> str:
        if self.skipped:
            return f"{self.name} was skipped: {self.skipped}"
        limits = [
            f"{word} {limit:g}"
            for word, limit in (("at least", self.at_least), ("at most", self.at_most))
            if limit is not None
        ]
        told = f" ({self.detail})" if self.detail else ""
        advice = f"; {self.remedy}" if self.remedy and self.refused else ""
        return f"{self.name} is {self.value:.4g}{told}, must be {' and '.join(limits)}{advice}"


def skip(name: str, reason: str) -> Check:
    """A check that cannot be applied, and why."""
    return Check(name, math.nan, skipped=reason)


def check_embeddings(
    embeddings: np.ndarray,
    *,
    max_zero_share: float = MAX_ZERO_SHARE,
    max_norm_ratio: float = MAX_NORM_RATIO,
    max_duplicate_share: float = MAX_DUPLICATE_SHARE,
) -> list[Check]:
    """Signs of a broken or collapsed item tower.   embeddings: (M, D) float32

    max_norm_ratio: of the largest norm over the median one
    """
    finite = np.concatenate([np.isfinite(block).all(axis=1) for block in _blocks(embeddings)])  # (M,)
    checks = [Check("embedding_non_finite_share", float(1 - finite.mean()), at_most=0.0)]
    if not finite.all():
        return checks  # the figures below would mean nothing
    norms = np.concatenate([np.linalg.norm(block, axis=1) for block in _blocks(embeddings)])  # (M,)
    present = norms[norms > 0]
    ratio = float(present.max() / np.median(present)) if len(present) else 1.0
    return [
        *checks,
        Check("embedding_zero_share", 1 - len(present) / len(norms), at_most=max_zero_share),
        Check("embedding_norm_max_over_median", ratio, at_most=max_norm_ratio),
        Check("embedding_duplicate_share", _duplicate_share(embeddings), at_most=max_duplicate_share),
    ]


def check_overlap(overlap: float) -> Check:
    """Whether the index finds what exact search finds."""
    return Check("ann_overlap_at_100", overlap, at_least=MIN_ANN_OVERLAP)


def require(checks: Iterable[Check]) -> None:
    """Raise QualityError when a check is refused; one that was skipped holds nothing up."""
    failed = [str(check) for check in checks if check.refused]
    if failed:
        raise QualityError(f"the build is not fit to serve: {'; '.join(failed)}")


def _duplicate_share(embeddings: np.ndarray) -> float:
    """The share of items whose embedding another item has too, bit for bit, not counting one of each."""
    weights = np.random.default_rng(0).integers(2**63, size=(embeddings.shape[1],), dtype=np.uint64) * 2 + 1
    digest = np.concatenate(  # (M,) equal rows: equal sums modulo 2^64; others hardly ever
        [_bits(block).astype(np.uint64) @ weights for block in _blocks(embeddings)]
    )
    return 1 - len(np.unique(digest)) / len(digest)


def _bits(block: np.ndarray) -> np.ndarray:
    """float32 as the integers that have the same bits."""
    return np.ascontiguousarray(block, dtype=np.float32).view(np.uint32)


def _blocks(embeddings: np.ndarray) -> Iterator[np.ndarray]:
    """The rows, some at a time: nothing of the size of all of them is made."""
    return (embeddings[start : start + _BLOCK_ROWS] for start in range(0, len(embeddings), _BLOCK_ROWS))
