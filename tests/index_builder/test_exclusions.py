"""Exclusions never cost a result: for every kind, however many rows must not be returned."""

from __future__ import annotations

import numpy as np
import pytest

from index_builder.ann import KINDS, AnnIndex, build_index
from index_builder.clustered_embeddings import generate_embeddings
from index_builder.exact_search import exact_scores
from index_builder.overlap import tune
from model.two_tower import Metric

NUM_ITEMS = 6_000
TOP_K = 100
DIM = 16
METRICS: list[Metric] = ["inner_product", "l2"]


@pytest.fixture(scope="module")
def vectors() -> tuple[np.ndarray, np.ndarray]:
    return generate_embeddings(NUM_ITEMS, DIM, num_users=64)


@pytest.fixture(scope="module")
def indexes(vectors) -> dict[tuple[str, str], AnnIndex]:
    built = {}
    for kind in KINDS:
        for metric in METRICS:
            built[kind, metric] = build_index(vectors[0], kind=kind, metric=metric)
            tune(built[kind, metric], vectors[1], target_overlap=0.99)
    return built


def best_rows(items: np.ndarray, user: np.ndarray, metric: Metric) -> np.ndarray:
    return np.argsort(-exact_scores(items, user, metric), kind="stable")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("count", [0, 10, 1_000, 2_500, NUM_ITEMS - TOP_K])
def test_the_best_rows_excluded_still_leave_k_of_the_rest(indexes, vectors, kind, metric, count):
    items, users = vectors[0], vectors[1][:6]
    order = [best_rows(items, user, metric) for user in users]
    excluded = [ranked[:count] for ranked in order]  # the hardest: what the index finds first
    scores, rows = indexes[kind, metric].search(users, TOP_K, excluded)
    assert rows.shape == (len(users), TOP_K)
    for user, ranked, out, found, best in zip(users, order, excluded, rows, scores, strict=True):
        assert len(set(found.tolist())) == TOP_K
        assert found.min() >= 0
        assert not set(found.tolist()) & set(out.tolist())
        assert (np.diff(best) <= 0).all()
        expected = exact_scores(items, user, metric)[found]
        rough = 2e-2 if kind == "flat_fp16" else 1e-4
        np.testing.assert_allclose(best, expected, rtol=rough, atol=rough)
        wanted = set(ranked[count : count + TOP_K].tolist())
        assert len(wanted & set(found.tolist())) >= (0.99 if KINDS[kind].exact else 0.75) * TOP_K
    if count == NUM_ITEMS - TOP_K:
        assert all(
            set(found.tolist()) == set(r[-TOP_K:].tolist()) for found, r in zip(rows, order, strict=True)
        )


@pytest.mark.parametrize("kind", list(KINDS))
def test_members_of_one_batch_may_exclude_very_different_numbers(indexes, vectors, kind):
    items, users = vectors[0], vectors[1][:6]
    index = indexes[kind, "inner_product"]
    order = [best_rows(items, user, "inner_product") for user in users]
    counts = [0, 10, 1_000, 2_000, NUM_ITEMS - TOP_K, NUM_ITEMS - 7]
    excluded = [ranked[:count] for ranked, count in zip(order, counts, strict=True)]
    scores, rows = index.search(users, TOP_K, excluded)
    for member, count in enumerate(counts):
        available = min(TOP_K, NUM_ITEMS - count)
        assert (rows[member, :available] >= 0).all()
        assert (rows[member, available:] == -1).all()
        alone = index.search(users[member : member + 1], TOP_K, [excluded[member]])
        np.testing.assert_array_equal(rows[member], alone[1][0])
        np.testing.assert_allclose(scores[member, :available], alone[0][0, :available], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.masks])
def test_many_exclusions_are_masked_and_not_searched_exactly(indexes, vectors, kind, monkeypatch):
    items, users = vectors[0], vectors[1][:6]
    index = indexes[kind, "inner_product"]
    monkeypatch.setattr(index, "_search_exactly", None)  # would fail if it were called
    excluded = best_rows(items, users[0], "inner_product")[:2_500]
    rows = index.search(users[:1], TOP_K, [excluded])[1]
    assert not set(rows[0].tolist()) & set(excluded.tolist())
