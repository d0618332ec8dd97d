from __future__ import annotations

import numpy as np
import pytest

from model.significance import (
    bootstrap_intervals,
    compare_paired,
    permutation_p_values,
    seed_and_user_intervals,
    sure_relative_drop,
)


def _share_covered(intervals: np.ndarray, truth: float) -> float:
    return float(((intervals[:, 0] <= truth) & (truth <= intervals[:, 1])).mean())


def test_bootstrap_intervals_cover_the_true_mean_as_often_as_they_say() -> None:
    """400 samples as columns, from distributions whose mean is known; 95 ± 4.4 % is four standard errors."""
    rng = np.random.default_rng(1)
    hits = (rng.random((300, 400)) < 0.3).astype(float)
    waits = rng.exponential(2.0, (300, 400))
    assert abs(_share_covered(bootstrap_intervals(hits), 0.3) - 0.95) < 0.044
    assert abs(_share_covered(bootstrap_intervals(waits), 2.0) - 0.95) < 0.044
    assert abs(_share_covered(bootstrap_intervals(hits, confidence=0.5), 0.3) - 0.5) < 0.1


def test_bootstrap_interval_is_as_wide_as_the_normal_one() -> None:
    values = np.random.default_rng(2).normal(5.0, 3.0, (2_000, 1))
    ((low, high),) = bootstrap_intervals(values)
    assert high - low == pytest.approx(2 * 1.96 * 3.0 / np.sqrt(2_000), rel=0.1)
    assert low < values.mean() < high


def test_equal_seeds_give_equal_intervals_and_other_seeds_nearly_equal_ones() -> None:
    values = np.random.default_rng(2).normal(size=(500, 3))
    assert np.array_equal(bootstrap_intervals(values), bootstrap_intervals(values))
    assert not np.array_equal(bootstrap_intervals(values), bootstrap_intervals(values, seed=1))
    together = bootstrap_intervals(values)[1]
    assert np.allclose(together, bootstrap_intervals(values[:, 1:2])[0])  # columns share their resamples


def test_permutation_p_by_hand() -> None:
    """Of the 8 signs of (1, 1, 1) only +++ and --- are as large as 3; of (3, 1) all of which |sum| >= 2."""
    p_values = permutation_p_values(np.ones((3, 1)), num_permutations=40_000)
    assert p_values[0] == pytest.approx(2 / 8, abs=0.01)
    p_values = permutation_p_values(np.array([[3.0], [-1.0]]), num_permutations=2_000)
    assert p_values[0] == pytest.approx(1.0)
    nothing = permutation_p_values(np.zeros((10, 1)), num_permutations=100)
    assert nothing[0] == 1.0
    never_zero = permutation_p_values(np.ones((50, 1)), num_permutations=999)
    assert never_zero[0] == pytest.approx(1 / 1_000)


def test_permutation_p_is_uniform_when_nothing_differs() -> None:
    """500 null experiments as columns; the Kolmogorov-Smirnov distance exceeds 1.95/√500 once in 1,000."""
    difference = np.random.default_rng(3).normal(size=(80, 500))
    p_values = np.sort(permutation_p_values(difference, num_permutations=2_000))
    steps = np.arange(1, 501) / 500
    distance = max(np.abs(p_values - steps).max(), np.abs(p_values - steps + 1 / 500).max())
    assert distance < 1.95 / np.sqrt(500)


def test_a_real_difference_is_found_and_has_its_sign_and_size() -> None:
    rng = np.random.default_rng(4)
    user = rng.random((1, 3_000, 1))
    ours = (user + 0.05 * rng.random((2, 3_000, 1)) < 0.5).astype(float)
    theirs = (user + 0.05 * rng.random((2, 3_000, 1)) < 0.4).astype(float)
    (pair,) = compare_paired(ours, theirs, num_permutations=1_000)
    assert pair.ours == pytest.approx(ours.mean())
    assert pair.difference == pytest.approx(ours.mean() - theirs.mean())
    assert pair.difference_interval[0] < pair.difference < pair.difference_interval[1]
    assert pair.difference_interval[0] > 0.08
    assert pair.ratio_interval[0] < pair.ratio < pair.ratio_interval[1]
    assert pair.p_value < 0.01
    (back,) = compare_paired(theirs, ours, num_permutations=1_000)
    assert back.difference == pytest.approx(-pair.difference)
    assert back.ratio == pytest.approx(1 / pair.ratio)
    # pairing tells them apart where two separate intervals overlap
    few = slice(0, 250)
    (of_few,) = compare_paired(ours[:, few], theirs[:, few])
    ((our_low, _),) = seed_and_user_intervals(ours[:, few])
    ((_, their_high),) = seed_and_user_intervals(theirs[:, few])
    assert our_low < their_high
    assert of_few.difference_interval[0] > 0


def test_each_figure_of_a_comparison_is_its_own() -> None:
    rng = np.random.default_rng(5)
    ours, theirs = rng.random((3, 200, 2)), rng.random((2, 200, 2))
    first, second = compare_paired(ours, theirs, num_permutations=500)
    (alone,) = compare_paired(ours[:, :, 1:], theirs[:, :, 1:], num_permutations=500)
    for field, value in vars(second).items():
        assert np.allclose(value, getattr(alone, field))
    assert not np.isclose(first.difference, second.difference)


def test_seeds_that_disagree_widen_the_interval() -> None:
    rng = np.random.default_rng(6)
    of_user = rng.normal(size=(1, 400, 1))
    agreeing = np.repeat(of_user, 5, axis=0)
    disagreeing = agreeing + np.array([-1.0, -0.5, 0.0, 0.5, 1.0])[:, None, None]
    widths = [np.ptp(seed_and_user_intervals(values)) for values in (of_user, agreeing, disagreeing)]
    assert widths[0] == pytest.approx(widths[1])
    assert widths[2] > 3 * widths[1]


def test_intervals_over_seeds_and_users_cover_the_mean_of_the_recipe() -> None:
    """Users and seeds both drawn anew 200 times; ten seeds make the bootstrap a few points too narrow."""
    rng = np.random.default_rng(7)
    intervals = np.concatenate(
        [
            seed_and_user_intervals(
                rng.normal(size=(1, 150, 1))
                + 0.15 * rng.normal(size=(10, 1, 1))
                + rng.normal(size=(10, 150, 1)),
                num_resamples=400,
            )
            for _ in range(200)
        ]
    )
    assert 0.88 < _share_covered(intervals, 0.0) < 0.995


def test_a_rival_that_never_hits_has_no_ratio() -> None:
    (pair,) = compare_paired(np.ones((1, 20, 1)), np.zeros((1, 20, 1)), num_permutations=100)
    assert np.isnan(pair.ratio)
    assert np.isnan(pair.ratio_interval).all()
    assert pair.difference_interval == (1.0, 1.0)


def test_unequal_users_and_no_users_are_refused() -> None:
    with pytest.raises(ValueError, match="same users"):
        compare_paired(np.ones((1, 20, 1)), np.ones((1, 19, 1)))
    with pytest.raises(ValueError, match="no user"):
        bootstrap_intervals(np.ones((0, 1)))


def test_a_sure_drop_is_smaller_than_the_drop_seen_and_nears_it_with_more_users():
    ours, theirs = np.tile([1.0, 0, 0, 0], 25), np.tile([1.0, 1, 0, 0], 25)
    few, many = (sure_relative_drop(np.tile(ours, n), np.tile(theirs, n)) for n in (1, 40))
    assert 0.2 < few < many < 0.5
    assert many == pytest.approx(0.5, abs=0.05)


def test_nothing_is_surely_lost_where_users_gain_or_nobody_had_anything():
    rng = np.random.default_rng(0)
    theirs = (rng.random(200) < 0.4).astype(float)
    assert sure_relative_drop(theirs, theirs) == 0
    assert sure_relative_drop(np.maximum(theirs, rng.random(200) < 0.2), theirs) < 0
    assert sure_relative_drop(np.ones(10), np.zeros(10)) == 0
    with pytest.raises(ValueError, match="the same users"):
        sure_relative_drop(np.ones(3), np.ones(4))


def test_equal_models_are_hardly_ever_surely_worse():
    """500 nights of 200 users between models of equal worth that err on different users: about 1 in 100."""
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(500):
        ours, theirs = (rng.random((2, 200)) < 0.3).astype(float)
        wrong += sure_relative_drop(ours, theirs, num_resamples=400) > 0
    assert wrong <= 15
