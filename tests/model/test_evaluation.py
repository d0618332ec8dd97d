from __future__ import annotations

import numpy as np
import pytest
import torch

from model.batch import SequenceBatch
from model.data.dataset import leave_one_out
from model.evaluation import metrics_of_ranks, rank_targets, score_items
from model.noise import Noise
from model.two_tower import TwoTower
from tests.model.conftest import make_log


class _Fixed(TwoTower):
    """Scores item m by -|m - last item - offset|: prefers the item `offset` after the last one."""

    def __init__(self, num_items: int, offset: float, metric: str = "inner_product") -> None:
        super().__init__()
        self.num_items, self.max_length, self.embedding_dim = num_items, 10, 2
        self.offset = offset
        self.metric = metric  # type: ignore[assignment]

    def user_embedding(self, batch: SequenceBatch, noise: Noise | None = None) -> torch.Tensor:
        last = batch.item_index.gather(1, (batch.length - 1)[:, None]).float() + self.offset
        return torch.cat([2 * last, torch.full_like(last, -1.0)], dim=1)

    def item_embeddings(self) -> torch.Tensor:
        item = torch.arange(1, self.num_items + 1).float()
        return torch.stack([item, item.square()], dim=1)  # 2·a·m - m²: largest at m = a

    def training_loss(self, batch: SequenceBatch) -> torch.Tensor:
        raise AssertionError("not trained")


def test_metrics_by_hand() -> None:
    metrics = metrics_of_ranks(np.array([1, 2, 4, 30]), cutoffs=(2, 20))
    assert metrics["recall_at_2"] == 0.5
    assert metrics["mrr_at_2"] == pytest.approx((1 + 0.5) / 4)
    assert metrics["recall_at_20"] == 0.75
    assert metrics["mrr_at_20"] == pytest.approx((1 + 0.5 + 0.25) / 4)


def test_the_right_model_ranks_every_target_first_and_a_wrong_one_does_not() -> None:
    log = make_log([[1, 2, 3, 4, 5], [11, 12, 13, 14, 15]], num_items=30)
    test = leave_one_out(log).test
    assert rank_targets(_Fixed(30, 1.0), test).tolist() == [1, 1]
    # preferring 3.2 after the last: items at +3, +4, +2, +5 come before +1
    assert rank_targets(_Fixed(30, 3.2), test).tolist() == [5, 5]


def test_masking_seen_items_moves_the_target_up_by_those_before_it() -> None:
    log = make_log([[1, 2, 3, 4, 5]], num_items=30)
    test = leave_one_out(log).test
    backward = _Fixed(30, -1.1)  # prefers 3, then 2, 4, then 1, 5
    assert rank_targets(backward, test).tolist() == [5]
    assert rank_targets(backward, test, mask_seen=True).tolist() == [1]


def test_a_target_that_was_seen_before_is_not_masked_away() -> None:
    log = make_log([[2, 3, 4, 5, 2]], num_items=30)
    assert rank_targets(_Fixed(30, -3.0), leave_one_out(log).test, mask_seen=True).tolist() == [1]


def test_a_model_that_scores_all_alike_gains_nothing_and_nan_ranks_last() -> None:
    log = make_log([[1, 2, 3, 4, 5]], num_items=30)

    class Constant(_Fixed):
        def item_embeddings(self) -> torch.Tensor:
            return torch.zeros(30, 2)

    assert rank_targets(Constant(30, 0.0), leave_one_out(log).test).tolist() == [30]
    assert rank_targets(_Fixed(30, float("nan")), leave_one_out(log).test).tolist() == [30]


def test_l2_scores_are_negative_squared_distances() -> None:
    scores = score_items(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0], [1.0, 0.0]]), "l2")
    assert scores.tolist() == [[pytest.approx(-25.0), pytest.approx(-1.0)]]


def test_asking_part_of_the_users_spreads_over_all_of_them() -> None:
    log = make_log([[1, 2, 3, 4, 5]] * 10 + [[5, 4, 3, 2, 1]] * 10, num_items=30)
    assert rank_targets(_Fixed(30, 1.0), leave_one_out(log).test, max_queries=4).tolist() == [1, 1, 5, 5]


def test_hiding_the_request_time_reaches_the_model() -> None:
    seen: list[list[int]] = []

    class Watching(_Fixed):
        def user_embedding(self, batch: SequenceBatch, noise: Noise | None = None) -> torch.Tensor:
            seen.append(batch.request_time.tolist())
            return super().user_embedding(batch, noise)

    test = leave_one_out(make_log([[1, 2, 3, 4, 5]], num_items=30)).test
    rank_targets(Watching(30, 1.0), test)
    rank_targets(Watching(30, 1.0), test, hide_request_time=True)
    assert seen == [[1_700_000_240], [-1]]
