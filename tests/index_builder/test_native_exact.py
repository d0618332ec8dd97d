"""The native search of small catalogues: it is the exact search, whoever shares the batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index_builder import ann
from index_builder.ann import build_index
from index_builder.exact_search import MAX_SCORE, search_exactly
from index_builder.native_exact import NativeExact
from index_builder.native_lists import native_library, native_variants
from model.two_tower import Metric

METRICS: list[Metric] = ["inner_product", "l2"]
VARIANTS = native_variants(native_library()) if native_library() is not None else []

pytestmark = pytest.mark.skipif(not VARIANTS, reason="the native search is not built here")


def native(items: np.ndarray, metric: Metric, variant: str) -> NativeExact:
    return NativeExact(native_library(), items, metric=metric, variant=variant)


@settings(max_examples=60, deadline=None)
@given(
    num_items=st.integers(1, 700),
    dim=st.integers(1, 70),
    batch=st.integers(0, 9),
    metric=st.sampled_from(METRICS),
    variant=st.sampled_from(VARIANTS or [""]),
    seed=st.integers(0, 2**32 - 1),
)
def test_it_is_the_exact_search(num_items, dim, batch, metric, variant, seed):
    rng = np.random.default_rng(seed)
    # small whole numbers: sums are exact in any order, and many items are equally good
    items = rng.integers(-3, 4, (num_items, dim)).astype(np.float32)
    queries = rng.integers(-3, 4, (batch, dim)).astype(np.float32)
    wanted = rng.integers(1, num_items + 20, batch)
    exclude = [
        None if rng.random() < 0.3 else rng.integers(-2, num_items + 2, rng.integers(0, num_items + 1))
        for _ in range(batch)
    ]
    scores, rows = native(items, metric, variant).search(queries, wanted, exclude)
    assert scores.shape == rows.shape == (batch, wanted.max(initial=0))
    for query in range(batch):
        out = exclude[query]
        out = np.empty(0, np.int64) if out is None else np.unique(out[(out >= 0) & (out < num_items)])
        best, expected = search_exactly(items, queries[query], metric, top_k=int(wanted[query]), excluded=out)
        found = len(expected)
        np.testing.assert_array_equal(rows[query, :found], expected)
        np.testing.assert_array_equal(scores[query, :found], best)
        assert (rows[query, found:] == -1).all()
        assert (scores[query, found:] == -np.inf).all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("metric", METRICS)
def test_an_answer_does_not_depend_on_who_shares_the_batch(metric, variant):
    rng = np.random.default_rng(0)
    items = rng.standard_normal((3_706, 64)).astype(np.float32)
    queries = rng.standard_normal((11, 64)).astype(np.float32)
    search = native(items, metric, variant)
    together = search.search(queries, np.full(11, 100), None)
    for number in range(11):
        alone = search.search(queries[number : number + 1], np.full(1, 100), None)
        np.testing.assert_array_equal(alone[0][0], together[0][number])
        np.testing.assert_array_equal(alone[1][0], together[1][number])
        expected = search_exactly(items, queries[number], metric, top_k=100, excluded=np.empty(0, np.int64))
        np.testing.assert_array_equal(alone[1][0], expected[1])
        np.testing.assert_allclose(alone[0][0], expected[0], rtol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_sample_that_misleads_costs_no_result(variant):
    """Of 16 items one is looked at first, to tell what is worth comparing: here those are the best."""
    sampled = np.arange(1_600 // 16) * 16 + np.arange(1_600 // 16) % 16
    items = np.ones((1_600, 1), dtype=np.float32)
    items[sampled, 0] = 2 + np.arange(len(sampled))
    query = np.ones((1, 1), dtype=np.float32)
    scores, rows = native(items, "inner_product", variant).search(query, np.array([300]), None)
    expected = search_exactly(items, query[0], "inner_product", top_k=300, excluded=np.empty(0, np.int64))
    np.testing.assert_array_equal(rows[0], expected[1])
    np.testing.assert_array_equal(scores[0], expected[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_stay_finite_and_an_overflow_is_the_best_or_the_worst(variant):
    items = np.array([[1e30], [-1e30], [1.0], [0.0]], dtype=np.float32)
    scores, rows = native(items, "inner_product", variant).search(
        np.array([[1e30]], dtype=np.float32), np.array([4]), None
    )
    assert rows.tolist() == [[0, 2, 3, 1]]
    assert scores[0].tolist() == [MAX_SCORE, np.float32(1e30), 0.0, -MAX_SCORE]
    scores, rows = native(items, "l2", variant).search(
        np.array([[0.0]], dtype=np.float32), np.array([4]), None
    )
    assert rows.tolist() == [[3, 2, 0, 1]]
    assert np.isfinite(scores).all()


def test_flat_indexes_of_small_catalogues_are_searched_by_it(monkeypatch):
    rng = np.random.default_rng(1)
    items = rng.standard_normal((900, 16)).astype(np.float32)
    queries = rng.standard_normal((5, 16)).astype(np.float32)
    exclude = [np.arange(850), None, np.array([3, 3, 4]), np.arange(900), np.empty(0, np.int64)]
    for metric in METRICS:
        index = build_index(items, kind="flat", metric=metric)
        assert isinstance(index._native, NativeExact)
        scores, rows = index.search(queries, [60, 5, 100, 10, 1], exclude)
        monkeypatch.setattr(ann, "native_exact", lambda *_: None)
        without = build_index(items, kind="flat", metric=metric)
        monkeypatch.undo()
        expected_scores, expected_rows = without.search(queries, [60, 5, 100, 10, 1], exclude)
        np.testing.assert_array_equal(rows, expected_rows)
        np.testing.assert_allclose(scores, expected_scores, rtol=1e-4, atol=1e-5)
        with pytest.raises(ValueError, match="one entry per query, got 2 for 5"):
            index.search(queries, 5, [None, None])
    large = np.zeros((ann._SMALL + 1, 4), dtype=np.float32)
    assert build_index(large, kind="flat")._native is None
