"""What a build must show before it becomes a bundle: checks with a figure and a limit, both recorded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

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
    """A figure and the limits that it must keep, both ends included."""

    name: str
    value: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the figure is within its limits; NaN never is."""
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)

    def __str__(self) -> str:
        limits = [
            f"{word} {limit:g}"
            for word, limit in (("at least", self.at_least), ("at most", self.at_most))
            if limit is not None
        ]
        return f"{self.name} is {self.value:.4g}, must be {' and '.join(limits)}"


def check_embeddings(embeddings: np.ndarray) -> list[Check]:
    """Signs of a broken or collapsed item tower.   embeddings: (M, D) float32"""
    finite = np.concatenate([np.isfinite(block).all(axis=1) for block in _blocks(embeddings)])  # (M,)
    checks = [Check("embedding_non_finite_share", float(1 - finite.mean()), at_most=0.0)]
    if not finite.all():
        return checks  # the figures below would mean nothing
    norms = np.concatenate([np.linalg.norm(block, axis=1) for block in _blocks(embeddings)])  # (M,)
    present = norms[norms > 0]
    ratio = float(present.max() / np.median(present)) if len(present) else 1.0
    return [
        *checks,
        Check("embedding_zero_share", 1 - len(present) / len(norms), at_most=MAX_ZERO_SHARE),
        Check("embedding_norm_max_over_median", ratio, at_most=MAX_NORM_RATIO),
        Check("embedding_duplicate_share", _duplicate_share(embeddings), at_most=MAX_DUPLICATE_SHARE),
    ]


def check_overlap(overlap: float) -> Check:
    """Whether the index finds what exact search finds."""
    return Check("ann_overlap_at_100", overlap, at_least=MIN_ANN_OVERLAP)


def require(checks: Iterable[Check]) -> None:
    """Raise QualityError unless all checks passed."""
    failed = [str(check) for check in checks if not check.passed]
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
