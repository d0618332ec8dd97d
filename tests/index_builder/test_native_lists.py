"""The native search of inverted lists: it finds what FAISS finds, loses nothing, and is not needed."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np
import pytest

from index_builder import ann
from index_builder.ann import AnnIndex, build_index
from index_builder.clustered_embeddings import generate_embeddings
from index_builder.exact_search import exact_scores, search_exactly
from index_builder.native_lists import NativeLists, native_library, native_variants
from index_builder.overlap import ann_overlap, tune
from index_builder.searchers import ListSearcher, RescoringSearcher
from model.two_tower import Metric

METRICS: list[Metric] = ["inner_product", "l2"]
VARIANTS = native_variants(native_library()) if native_library() is not None else []

pytestmark = pytest.mark.skipif(not VARIANTS, reason="the native list search is not built here")


@pytest.fixture(scope="module")
def vectors() -> tuple[np.ndarray, np.ndarray]:
    return generate_embeddings(8_000, 32, num_users=96)


@pytest.fixture(scope="module")
def indexes(vectors) -> dict[str, AnnIndex]:
    return {metric: build_index(vectors[0], kind="ivf_pq_fs", metric=metric) for metric in METRICS}


def native(index: AnnIndex, variant: str = VARIANTS[0] if VARIANTS else "") -> NativeLists:
    return NativeLists(native_library(), index._index, index.embeddings, metric=index.metric, variant=variant)


def without_native(index: AnnIndex) -> RescoringSearcher:
    return RescoringSearcher(
        ListSearcher(index._index, index._spec, index.metric), index.embeddings, index.metric
    )


def share_found(wanted: Iterable[np.ndarray], found: np.ndarray) -> float:
    """Of 100 rows of each query, averaged."""
    pairs = zip(wanted, found, strict=True)
    return float(np.mean([len(set(one.tolist()) & set(other.tolist())) / 100 for one, other in pairs]))


def test_the_library_searches_the_kind_that_it_is_for(indexes):
    assert isinstance(indexes["l2"]._searcher, NativeLists)
    assert indexes["l2"]._searcher.variant == VARIANTS[0]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("metric", METRICS)
def test_it_finds_what_faiss_finds_in_the_same_lists(indexes, vectors, metric, variant):
    index, users = indexes[metric], vectors[1]
    plain, fast = without_native(index), native(index, variant)
    best = [np.argsort(-exact_scores(index.embeddings, user, metric))[:100] for user in users]
    for width in (8, 20):
        for fetch in (100, 224):
            scores, rows = fast.search(users, fetch=fetch, keep=100, width=width)
            expected = plain.search(users, fetch=fetch, keep=100, width=width)[1]
            assert share_found(best, rows) > share_found(best, expected) - 0.005
            if fetch > 200:  # codes leave out few of the best
                assert share_found(expected, rows) > 0.98
            for user, ours, values in zip(users, rows, scores, strict=True):
                exact = exact_scores(index.embeddings, user, metric)[ours]
                np.testing.assert_allclose(values, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("num_items", "dim"), [(256, 1), (300, 3), (1_000, 5), (2_500, 16), (1_025, 33)])
def test_everything_looked_at_is_exact_search(num_items, dim, metric, variant):
    rng = np.random.default_rng(dim)
    items = rng.standard_normal((num_items, dim)).astype(np.float32)
    users = rng.standard_normal((7, dim)).astype(np.float32)
    index = build_index(items, kind="ivf_pq_fs", metric=metric)
    searcher = native(index, variant)
    scores, rows = searcher.search(users, fetch=num_items, keep=num_items, width=searcher.max_width)
    for user, ours, best in zip(users, rows, scores, strict=True):
        expected, _ = search_exactly(items, user, metric, top_k=num_items, excluded=np.empty(0, np.int64))
        assert sorted(ours.tolist()) == list(range(num_items))  # no item is lost, none comes twice
        np.testing.assert_allclose(best, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_every_variant_gives_the_same_rows(indexes, vectors, metric):
    answers = [
        native(indexes[metric], variant).search(vectors[1], fetch=200, keep=100, width=12)[1]
        for variant in VARIANTS
    ]
    for rows in answers[1:]:
        assert (rows == answers[0]).mean() > 0.995  # but for ties between rounded sums


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("metric", METRICS)
def test_rows_to_skip_cost_no_result(indexes, vectors, metric, variant):
    index, users = indexes[metric], vectors[1]
    searcher = native(index, variant)
    for user in users[:8, None]:
        best = searcher.search(user, fetch=400, keep=200, width=30)[1][0]
        skip = best[::2]
        rows = searcher.search(user, fetch=400, keep=100, width=30, skip=skip)[1]
        assert not set(rows[0].tolist()) & set(skip.tolist())
        assert len(set(rows[0].tolist())) == 100
        assert len(set(best[1::2].tolist()) & set(rows[0].tolist())) >= 98


def test_fewer_are_found_than_asked_where_the_lists_hold_fewer(indexes, vectors):
    searcher = native(indexes["inner_product"])
    scores, rows = searcher.search(vectors[1][:4], fetch=5_000, keep=5_000, width=1)
    for best, found in zip(scores, rows, strict=True):
        count = int((found >= 0).sum())
        assert 0 < count < 5_000
        assert (found[count:] == -1).all()
        assert (best[count:] == -np.inf).all()
        assert np.isfinite(best[:count]).all()


def test_an_answer_does_not_depend_on_who_shares_the_batch(indexes, vectors):
    searcher = native(indexes["inner_product"])
    together = searcher.search(vectors[1], fetch=200, keep=100, width=9)
    for member in (0, 1, 5, 95):
        alone = searcher.search(vectors[1][member : member + 1], fetch=200, keep=100, width=9)
        np.testing.assert_array_equal(alone[0][0], together[0][member])
        np.testing.assert_array_equal(alone[1][0], together[1][member])


@pytest.mark.parametrize("metric", METRICS)
def test_items_that_are_all_alike_are_still_told_apart(metric):
    items = np.ones((6_000, 8), dtype=np.float32)
    items[::2] *= 1.5
    index = build_index(items, kind="ivf_pq_fs", metric=metric)
    rows = index.search(items[:3] * 2, 500)[1]
    assert all(len(set(found.tolist())) == 500 for found in rows)
    assert (rows % 2 == 0).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scale", [0.0, 1e-42, 1e-20, 1e15, 5e37])
def test_queries_of_any_size_give_k_rows(indexes, vectors, metric, scale):
    scores, rows = indexes[metric].search(vectors[1][:6] * np.float32(scale), 50)
    assert np.isfinite(scores).all()
    assert all(len(set(found.tolist())) == 50 for found in rows)
    if metric == "inner_product" and scale > 1e-30:
        usual = indexes[metric].search(vectors[1][:6], 50)[1]
        assert (rows == usual).mean() > (
            0.95 if scale < 1e30 else 0.0
        )  # overflowing scores are all the largest


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("count", [0, 10, 1_000, 2_500, 7_900])
def test_without_the_library_faiss_keeps_every_promise(vectors, metric, count, monkeypatch):
    monkeypatch.setattr(ann, "native_lists", lambda *_: None)
    items, users = vectors[0], vectors[1]
    index = build_index(items, kind="ivf_pq_fs", metric=metric)
    assert isinstance(index._searcher, RescoringSearcher)
    tune(index, users, target_overlap=0.97)
    assert ann_overlap(index, items, users) >= 0.97
    order = [np.argsort(-exact_scores(items, user, metric), kind="stable") for user in users[:4]]
    scores, rows = index.search(users[:4], 100, [ranked[:count] for ranked in order])
    for user, ranked, found, best in zip(users, order, rows, scores, strict=False):
        assert len(set(found.tolist())) == 100
        assert found.min() >= 0
        assert not set(found.tolist()) & set(ranked[:count].tolist())
        np.testing.assert_allclose(best, exact_scores(items, user, metric)[found], rtol=1e-4, atol=1e-5)


def test_a_library_that_is_none_is_not_used_and_that_is_said(tmp_path, caplog):
    assert native_library(tmp_path) is None
    assert not caplog.records
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "native_search.so").write_bytes(b"not a library")
    with caplog.at_level(logging.WARNING):
        assert native_library(broken) is None
    assert "native_search.so is not used, FAISS and torch search instead" in caplog.text
