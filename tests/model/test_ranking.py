from __future__ import annotations

import numpy as np
import pytest
import torch

from model.data.dataset import leave_one_out
from model.evaluation import rank_targets
from model.ranking import rank_and_list
from model.registry import build_model
from model.two_tower import TwoTower
from tests.model.conftest import TINY, make_log
from tests.model.test_evaluation import _Fixed


def _model(name: str) -> TwoTower:
    torch.manual_seed(0)
    model = build_model(name, TINY if name == "t2diff" else {"embedding_dim": 8, "max_length": 6}, 30)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("name", ["t2diff", "sasrec"])
@pytest.mark.parametrize("hide", [False, True])
def test_ranks_are_those_of_the_yardstick(name: str, hide: bool) -> None:
    rng = np.random.default_rng(0)
    log = make_log([rng.integers(1, 31, 9).tolist() for _ in range(25)], num_items=30)
    test = leave_one_out(log).test
    model = _model(name)
    given = {"seed": 3, "batch_size": 10, "hide_request_time": hide}
    ranking = rank_and_list(model, test, **given)  # type: ignore[arg-type]
    assert np.array_equal(ranking.rank, rank_targets(model, test, **given))  # type: ignore[arg-type]
    masked = rank_targets(model, test, mask_seen=True, **given)  # type: ignore[arg-type]
    assert np.array_equal(ranking.rank_unseen, masked)
    assert model.training  # left as it was


def test_lists_hold_what_comes_first_and_the_target_at_its_rank() -> None:
    test = leave_one_out(make_log([[1, 2, 3, 4, 5], [11, 12, 13, 14, 15]], num_items=30)).test
    ranking = rank_and_list(_Fixed(30, 1.1), test, list_length=4)
    assert ranking.top.tolist() == [[5, 6, 4, 7], [15, 16, 14, 17]]
    assert ranking.top_unseen.tolist() == [[5, 6, 7, 8], [15, 16, 17, 18]]
    assert ranking.rank.tolist() == ranking.rank_unseen.tolist() == [1, 1]
    assert rank_and_list(_Fixed(30, 1.1), test, list_length=400).top.shape == (2, 30)


def test_seen_items_leave_the_lists_and_the_ranks() -> None:
    test = leave_one_out(make_log([[1, 2, 3, 4, 5]], num_items=30)).test
    ranking = rank_and_list(_Fixed(30, -1.1), test, list_length=3)
    assert ranking.top.tolist() == [[3, 2, 4]]
    assert (ranking.rank.tolist(), ranking.rank_unseen.tolist()) == ([5], [1])
    assert ranking.top_unseen.tolist() == [[5, 6, 7]]


def test_progress_is_told() -> None:
    test = leave_one_out(make_log([[1, 2, 3, 4]] * 5, num_items=9)).test
    told: list[int] = []
    rank_and_list(_Fixed(9, 1.0), test, batch_size=2, on_batch=told.append)
    assert told == [2, 4, 5]
