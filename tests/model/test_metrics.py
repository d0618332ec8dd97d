from __future__ import annotations

import numpy as np
import pytest

from model.data.dataset import leave_one_out
from model.data.interactions import Interactions
from model.evaluation import metrics_of_ranks
from model.metrics import gap_group, is_above_zero, item_reference, list_metrics, question_metrics
from tests.model.conftest import make_log


def test_metrics_of_one_relevant_item_by_hand() -> None:
    metrics = question_metrics(np.array([1, 2, 3, 30]), cutoffs=(2, 20))
    assert metrics["recall_at_2"].tolist() == [1, 1, 0, 0]
    assert metrics["mrr_at_2"].tolist() == [1, 0.5, 0, 0]
    assert metrics["ndcg_at_2"] == pytest.approx([1, 1 / np.log2(3), 0, 0])
    assert metrics["recall_at_20"].tolist() == [1, 1, 1, 0]
    assert metrics["ndcg_at_20"] == pytest.approx([1, 1 / np.log2(3), 0.5, 0])


def test_they_are_the_yardsticks_own() -> None:
    rank = np.random.default_rng(0).integers(1, 300, 1_000)
    ours = {name: values.mean() for name, values in question_metrics(rank).items()}
    yardstick = metrics_of_ranks(rank)
    assert {name: ours[name] for name in yardstick} == pytest.approx(yardstick)


def test_coverage_popularity_and_head_share_by_hand() -> None:
    counts = np.array([7, 1, 1, 0, 0, 0, 0, 0, 0, 0])  # the head is the first fifth: items 1 and 2
    top = np.array([[1, 3, 4], [1, 2, 5]])
    metrics = list_metrics(top, counts, np.eye(10, dtype=np.float32), cutoffs=(1, 2, 3, 100))
    assert metrics["coverage_at_1"] == pytest.approx(1 / 10)
    assert metrics["coverage_at_2"] == pytest.approx(3 / 10)
    assert metrics["coverage_at_3"] == metrics["coverage_at_100"] == pytest.approx(5 / 10)
    assert metrics["log_popularity_at_1"] == pytest.approx(np.log(8))
    assert metrics["log_popularity_at_2"] == pytest.approx((2 * np.log(8) + 2 * np.log(2)) / 4)
    assert metrics["head_share_at_1"] == 1
    assert metrics["head_share_at_3"] == pytest.approx(3 / 6)


def test_diversity_is_one_minus_the_mean_cosine_of_pairs() -> None:
    reference = np.array([[1, 0], [1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32)
    counts = np.ones(4, dtype=int)
    alike = list_metrics(np.array([[1, 2]]), counts, reference, cutoffs=(1, 2))
    assert alike["diversity_at_2"] == pytest.approx(0)
    assert alike["diversity_at_1"] == 0
    mixed = list_metrics(np.array([[1, 3, 4], [1, 2, 3]]), counts, reference, cutoffs=(3,))
    by_hand = ((1 - (0 + 0.6 + 0.8) / 3) + (1 - (1 + 0 + 0) / 3)) / 2
    assert mixed["diversity_at_3"] == pytest.approx(by_hand)


def test_reference_cosine_is_the_share_of_common_users() -> None:
    log = make_log([[1, 2, 2], [1, 2], [1, 3], [3, 1]], num_items=4)
    reference = item_reference(log)
    cosine = reference @ reference.T
    assert cosine[0, 1] == pytest.approx(2 / np.sqrt(4 * 2))  # a repeat counts once
    assert cosine[0, 2] == pytest.approx(2 / np.sqrt(4 * 2))
    assert cosine[1, 2] == 0
    assert (reference[3] == 0).all()  # never in training


def test_many_users_are_projected_with_cosines_kept() -> None:
    rng = np.random.default_rng(1)
    log = make_log([(1 + rng.choice(20, 8, replace=False)).tolist() for _ in range(600)], num_items=20)
    exact, projected = item_reference(log, dim=600), item_reference(log, dim=300)
    assert projected.shape == (20, 300)
    error = np.abs(exact @ exact.T - projected @ projected.T)
    assert error.max() < 0.25
    assert error.mean() < 0.06


def _asked_after(pauses: list[int | None]) -> np.ndarray:
    logs = make_log([[1, 2, 3]] * len(pauses), num_items=3)
    timestamp = logs.timestamp.copy()
    for user, pause in enumerate(pauses):
        timestamp[3 * user + 2] = -1 if pause is None else timestamp[3 * user + 1] + pause
    log = Interactions.create(
        user_ids=logs.user_ids,
        item_ids=logs.item_ids,
        offsets=logs.offsets,
        item_index=logs.item_index,
        timestamp=timestamp,
    )
    return gap_group(leave_one_out(log).test)


def test_pauses_are_grouped_with_both_ends_where_they_belong() -> None:
    group = _asked_after([0, 1, 60, 61, 3_600, 3_601, 10**8, None])
    expected = ["0_s", "1_60_s", "1_60_s", "1_60_min", "1_60_min", "over_1_h", "over_1_h", "unknown"]
    assert group.tolist() == expected
    assert is_above_zero(group).tolist() == [False] + [True] * 6 + [False]
