from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from index_builder.route_merge import merge_routes


def test_an_item_counts_once_with_its_best_score() -> None:
    score = np.array([[9.0, 5.0, 1.0], [8.0, 7.0, 2.0]], dtype=np.float32)
    rows = np.array([[4, 7, 2], [7, 5, 4]])
    merged_score, merged_rows = merge_routes(score, rows, num_routes=2, top_k=score.shape[1])
    assert merged_rows.tolist() == [[4, 7, 5]]
    assert merged_score.tolist() == [[9.0, 8.0, 7.0]]


def test_routes_of_other_users_are_not_mixed() -> None:
    score = np.array([[3.0], [2.0], [9.0], [8.0]], dtype=np.float32)
    rows = np.array([[0], [1], [2], [3]])
    assert merge_routes(score, rows, num_routes=2, top_k=1)[1].tolist() == [[0], [2]]


def test_what_no_route_found_stays_empty_at_the_end() -> None:
    score = np.array([[3.0, -np.inf], [2.0, -np.inf]], dtype=np.float32)
    rows = np.array([[6, -1], [6, -1]])
    merged_score, merged_rows = merge_routes(score, rows, num_routes=2, top_k=score.shape[1])
    assert merged_rows.tolist() == [[6, -1]]
    assert merged_score.tolist() == [[3.0, -np.inf]]


def test_each_user_gets_as_many_as_asked() -> None:
    score = np.array([[3.0, 1.0], [2.0, 0.0], [9.0, -np.inf], [8.0, -np.inf]], dtype=np.float32)
    rows = np.array([[0, 1], [2, 3], [4, -1], [5, -1]])
    assert merge_routes(score, rows, num_routes=2, top_k=[2, 1])[1].tolist() == [[0, 2], [4, -1]]


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**31))
def test_equals_the_best_scores_of_the_union(num_routes: int, top_k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    items = rng.normal(size=(20, num_routes)).astype(np.float32)  # score of every item on each route
    rows = np.argsort(-items, axis=0)[:top_k].T  # (R, K)
    score = np.take_along_axis(items.T, rows, axis=1)
    merged_score, merged_rows = merge_routes(score, rows, num_routes=num_routes, top_k=top_k)
    best = items.max(axis=1)
    assert merged_rows[0].tolist() == np.argsort(-best, kind="stable")[:top_k].tolist()
    assert merged_score[0].tolist() == np.sort(best)[::-1][:top_k].tolist()
