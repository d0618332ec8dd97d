"""How sure a figure is: the bootstrap over users, and paired tests between two models on the same users.

Every figure here is a mean over users, so a resample of users is a set of weights and all resamples of
all figures are one matrix product. Equal seeds draw equal users, whatever the figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 1_000
NUM_PERMUTATIONS = 10_000
CONFIDENCE = 0.95
_CELLS_AT_ONCE = 1 << 23


@dataclass(frozen=True)
class PairedComparison:
    """What is known of ours against theirs; ratio is ours / theirs, nan where theirs is or comes out 0."""

    ours: float
    theirs: float
    difference: float
    difference_interval: tuple[float, float]
    ratio: float
    ratio_interval: tuple[float, float]
    p_value: float


def bootstrap_intervals(
    values: np.ndarray,
    *,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> np.ndarray:
    """Percentile intervals of the means over users (Efron and Tibshirani 1993, chapter 13).

    values: (Q, F) figure f of user q   -> (F, 2) low, high
    """
    _check(len(values))
    means = np.concatenate(
        [counts @ values for counts in _user_counts(len(values), num_resamples, seed)]
    ) / len(values)  # (R, F)
    return _percentiles(means, confidence).T


def seed_and_user_intervals(
    values: np.ndarray,
    *,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> np.ndarray:
    """Intervals of means over training seeds and users, both resampled.   values: (S, Q, F) -> (F, 2)"""
    _check(values.shape[1])
    return _percentiles(_pigeonhole_means([values], num_resamples, seed)[0], confidence).T


def compare_paired(
    ours: np.ndarray,
    theirs: np.ndarray,
    *,
    num_resamples: int = NUM_RESAMPLES,
    num_permutations: int = NUM_PERMUTATIONS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> list[PairedComparison]:
    """Paired bootstrap and permutation test of two models that answered for the same users.

    ours, theirs: (S, Q, F) figure f of user q under training seed s; their numbers of seeds may differ
    -> one comparison for each of the F figures
    """
    if ours.shape[1:] != theirs.shape[1:]:
        raise ValueError(f"paired tests need the same users and figures, got {ours.shape} and {theirs.shape}")
    _check(ours.shape[1])
    resampled_ours, resampled_theirs = _pigeonhole_means([ours, theirs], num_resamples, seed)  # (R, F)
    differences = _percentiles(resampled_ours - resampled_theirs, confidence)  # (2, F)
    divisor = np.where(resampled_theirs > 0, resampled_theirs, np.nan)
    ratios = _percentiles(resampled_ours / divisor, confidence)
    p_values = permutation_p_values(
        ours.mean(axis=0) - theirs.mean(axis=0), num_permutations=num_permutations, seed=seed
    )
    mean_ours, mean_theirs = ours.mean(axis=(0, 1)), theirs.mean(axis=(0, 1))
    return [
        PairedComparison(
            ours=float(of_us),
            theirs=float(of_them),
            difference=float(of_us - of_them),
            difference_interval=(float(differences[0, number]), float(differences[1, number])),
            ratio=float(of_us / of_them) if of_them > 0 else float("nan"),
            ratio_interval=(float(ratios[0, number]), float(ratios[1, number])),
            p_value=float(p_values[number]),
        )
        for number, (of_us, of_them) in enumerate(zip(mean_ours, mean_theirs, strict=True))
    ]


def sure_relative_drop(
    ours: np.ndarray,
    theirs: np.ndarray,
    *,
    confidence: float = 0.99,
    num_resamples: int = 2_000,
    seed: int = 0,
) -> float:
    """By what share ours lies below theirs at least, said with one-sided `confidence` over the users.

    The lower end of a paired percentile bootstrap of 1 - mean(ours) / mean(theirs); negative where ours may
    be the better one. A resample in which theirs is 0 counts as no drop: few users prove little.
    ours, theirs: (Q,) the figures of the same users
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"paired tests need the same users, got {ours.shape} and {theirs.shape}")
    _check(len(ours))
    both = np.stack([ours, theirs], axis=1)  # (Q, 2)
    means = np.concatenate([counts @ both for counts in _user_counts(len(both), num_resamples, seed)])
    ratio = np.divide(means[:, 0], means[:, 1], out=np.ones(len(means)), where=means[:, 1] > 0)
    return float(np.quantile(1 - ratio, 1 - confidence))


def permutation_p_values(
    difference: np.ndarray, *, num_permutations: int = NUM_PERMUTATIONS, seed: int = 0
) -> np.ndarray:
    """Two-sided p of "for each user, which model is which does not matter": random signs (Fisher's test).

    It speaks of these trained models; whether their recipes differ is what the seeds, and the bootstrap
    over them, show. Never 0: the given signs count as one of the permutations (Phipson and Smyth 2010).
    difference: (Q, F) of each user, averaged over seeds   -> (F,)
    """
    _check(len(difference))
    total = difference.sum(axis=0)
    observed = np.abs(total) * (1 - 1e-9)  # sums of the same numbers in another order count as equal
    rng = np.random.default_rng(seed)
    as_large = np.zeros(difference.shape[1], dtype=np.int64)
    for size in _chunks(num_permutations, len(difference)):
        random_bytes = rng.integers(0, 256, (size, (len(difference) + 7) // 8), dtype=np.uint8)
        positive = np.unpackbits(random_bytes, axis=1)[:, : len(difference)]  # (r, Q) 0 or 1
        signed = 2 * (positive.astype(np.float64) @ difference) - total
        as_large += (np.abs(signed) >= observed).sum(axis=0)
    return (1 + as_large) / (1 + num_permutations)


def _pigeonhole_means(models: list[np.ndarray], num_resamples: int, seed: int) -> list[np.ndarray]:
    """Means over resampled users, the same for all models, and resampled seeds, of each model alone.

    Users and seeds cross, so each is resampled by itself (the pigeonhole bootstrap, Owen 2007); with one
    seed only users vary.   models: each (S, Q, F) -> each (R, F)
    """
    num_users = models[0].shape[1]
    by_user = [values.transpose(1, 0, 2).reshape(num_users, -1) for values in models]  # each (Q, S * F)
    resampled: list[list[np.ndarray]] = [[] for _ in models]
    for counts in _user_counts(num_users, num_resamples, seed):
        for collected, values in zip(resampled, by_user, strict=True):
            collected.append(counts @ values / num_users)
    rng = np.random.default_rng([seed, 1])
    means = []
    for collected, values in zip(resampled, models, strict=True):
        num_seeds = len(values)
        counts = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=num_resamples)  # (R, S)
        of_seed = np.concatenate(collected).reshape(num_resamples, num_seeds, -1)  # (R, S, F)
        means.append(np.einsum("rs,rsf->rf", counts / num_seeds, of_seed))
    return means


def _user_counts(num_users: int, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each user is drawn in each resample, in chunks of (r, Q) float64."""
    rng = np.random.default_rng(seed)
    for size in _chunks(num_resamples, num_users):
        drawn = rng.integers(num_users, size=(size, num_users)) + num_users * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * num_users)
        yield counts.reshape(size, num_users).astype(np.float64)


def _chunks(total: int, width: int) -> Iterator[int]:
    at_once = max(1, _CELLS_AT_ONCE // max(width, 1))
    for first in range(0, total, at_once):
        yield min(at_once, total - first)


def _percentiles(resampled: np.ndarray, confidence: float) -> np.ndarray:
    """(R, ...) -> (2, ...); nan where a resample is."""
    tail = (1 - confidence) / 2
    return np.quantile(resampled, [tail, 1 - tail], axis=0)


def _check(num_users: int) -> None:
    if num_users == 0:
        raise ValueError("no user was asked, so there is nothing to resample")
