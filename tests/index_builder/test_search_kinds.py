"""What single kinds promise beyond the common: lists, graphs, matrix products, and the choice of `auto`."""

from __future__ import annotations

import numpy as np
import pytest

from index_builder import ann, index_kinds, torch_search
from index_builder.ann import AnnIndex, build_index
from index_builder.clustered_embeddings import generate_embeddings
from index_builder.exact_search import exact_scores, search_exactly
from index_builder.faiss_library import faiss
from index_builder.index_choice import CPU, CUDA, choose_kind
from index_builder.inverted_lists import extended_queries
from index_builder.overlap import ann_overlap, tune
from index_builder.search_groups import Exclusions
from index_builder.searchers import ListSearcher
from index_builder.torch_search import TorchSearch
from model.two_tower import Metric

METRICS: list[Metric] = ["inner_product", "l2"]


@pytest.fixture(scope="module")
def vectors() -> tuple[np.ndarray, np.ndarray]:
    """20,000 items like trained ones, and users of theirs."""
    return generate_embeddings(20_000, 32, num_users=128)


def test_generated_embeddings_are_the_same_for_the_same_seed_and_clustered(vectors):
    items, users = generate_embeddings(20_000, 32, num_users=128)
    np.testing.assert_array_equal(items, vectors[0])
    np.testing.assert_array_equal(users, vectors[1])
    assert not np.array_equal(generate_embeddings(100, 32, num_users=1, seed=1)[0], items[:100])
    centres = faiss.Kmeans(32, 141, seed=1, niter=5)
    centres.train(items)
    left = centres.index.search(items, 1)[0].sum()
    spread = ((items - items.mean(axis=0)) ** 2).sum()
    assert 0.5 < 1 - left / spread < 0.8  # of trained ones: 0.54 with √M centres at 3,706 items


def overlap_of_rows(items: np.ndarray, users: np.ndarray, found: np.ndarray) -> float:
    """The share of the exact top K by inner product in what something found.   found: (Q, K)"""
    exact = np.argsort(-(users @ items.T), axis=1)[:, : found.shape[1]]
    shares = [len(set(best.tolist()) & set(rows.tolist())) for best, rows in zip(exact, found, strict=True)]
    return float(np.mean(shares)) / found.shape[1]


def test_lists_here_need_fewer_visits_than_those_of_faiss(vectors):
    items, users = vectors
    ours = build_index(items, kind="ivf_flat")
    num_lists = ours._index.nlist
    theirs = faiss.IndexIVFFlat(faiss.IndexFlatIP(32), 32, num_lists, faiss.METRIC_INNER_PRODUCT)
    theirs.train(items)
    theirs.add(items)
    theirs.nprobe = ours.width = 8
    overlap = overlap_of_rows(items, users, theirs.search(users, 100)[1])
    assert ann_overlap(ours, items, users) > overlap + 0.05


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_pq_fs"])
@pytest.mark.parametrize("metric", METRICS)
def test_lists_chosen_here_are_those_that_faiss_would_choose(vectors, kind, metric):
    items, users = vectors
    index = build_index(items[:5_000], kind=kind, metric=metric)
    searcher = ListSearcher(index._index, index._spec, metric)
    prepared, _ = index._spec.prepare(users, index._index.d)
    lists, values = searcher._best_lists(prepared, 12)
    expected_values, expected = index._index.quantizer.search(prepared, 12)
    np.testing.assert_allclose(values, expected_values, rtol=1e-3, atol=1e-3)
    assert (lists == expected).mean() > 0.99  # rounding may swap neighbours


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_pq_fs", "hnsw"])
@pytest.mark.parametrize("metric", METRICS)
def test_tuning_reaches_the_asked_overlap_and_goes_no_farther_than_needed(vectors, kind, metric):
    items, users = vectors[0][:5_000], vectors[1]
    index = build_index(items, kind=kind, metric=metric)
    index.width = 1
    reached = tune(index, users, target_overlap=0.97)
    assert reached >= 0.97
    assert reached == ann_overlap(index, items, users)
    if kind != "hnsw":  # its beam is never narrower than the number of results
        index.width = index.width * 2 // 3
        assert ann_overlap(index, items, users) < 0.97


def test_tuning_leaves_room_for_users_that_it_has_not_seen(vectors):
    items = vectors[0][:5_000]
    users = vectors[1]
    index = build_index(items, kind="ivf_flat")
    index.width = 1
    few = tune(index, users[:12], target_overlap=0.9)
    width = index.width
    index.width = 1
    tune(index, np.repeat(users[:12], 50, axis=0), target_overlap=0.9)
    assert index.width < width  # the same overlap, told by more users
    assert few > 0.9


def test_tuning_rescores_more_where_no_width_is_enough(vectors):
    items, users = vectors[0][:5_000], vectors[1]
    index = build_index(items, kind="ivf_pq_fs")
    index.rescored = 1
    assert tune(index, users, target_overlap=0.995) >= 0.995
    assert index.rescored > 1


def test_more_results_are_searched_wider(vectors):
    index = build_index(vectors[0], kind="ivf_flat")
    tune(index, vectors[1], target_overlap=0.98)
    assert ann_overlap(index, *vectors, top_k=1_000) > 0.95
    assert index._width_for(100) == index.width
    assert 2 * index.width <= index._width_for(1_000) <= 2.5 * index.width


def test_a_graph_by_distance_finds_more_large_inner_products_than_one_by_inner_product(vectors):
    items, users = vectors[0][:6_000], vectors[1]
    theirs = faiss.IndexHNSWFlat(32, 32, faiss.METRIC_INNER_PRODUCT)
    theirs.hnsw.efConstruction, theirs.hnsw.efSearch = 100, 128
    theirs.add(items)
    overlap = overlap_of_rows(items, users, theirs.search(users, 100)[1])
    ours = build_index(items, kind="hnsw")
    assert ann_overlap(ours, items, users) > overlap + 0.1
    scores, rows = ours.search(users, 100)
    for user, best, found in zip(users, scores, rows, strict=True):
        np.testing.assert_allclose(best, exact_scores(items, user, "inner_product")[found], rtol=1e-4)


@pytest.mark.parametrize("metric", METRICS)
def test_a_matrix_product_equals_exact_search_in_groups_of_any_size(vectors, metric, monkeypatch):
    items, users = vectors[0][:700], vectors[1][:9]
    rng = np.random.default_rng(0)
    excluded = [np.sort(rng.permutation(700)[:count]) for count in (0, 5, 695, 700, 1, 0, 650, 10, 699)]
    for max_scores in (1, 2_000, 1 << 20):
        monkeypatch.setattr(torch_search, "_MAX_SCORES", max_scores)
        scores, rows = TorchSearch(items, metric).search(users, 20, Exclusions(excluded, 9, 700))
        for user, out, best, found in zip(users, excluded, scores, rows, strict=True):
            expected, expected_rows = search_exactly(items, user, metric, top_k=20, excluded=out)
            np.testing.assert_allclose(best[: len(expected)], expected, rtol=1e-4, atol=1e-5)
            assert set(found[: len(expected)].tolist()) == set(expected_rows.tolist())
            assert (found[len(expected) :] == -1).all()


@pytest.mark.parametrize("metric", METRICS)
def test_many_queries_of_a_small_flat_index_get_what_each_gets_alone(vectors, metric):
    items, users = vectors[0][:900], vectors[1][:40]
    rng = np.random.default_rng(0)
    index = build_index(items, kind="flat", metric=metric)
    wanted = rng.integers(1, 60, 40)
    exclude = [None, *(rng.integers(-5, 910, count) for count in rng.choice([0, 3, 50, 870, 3_000], 39))]
    scores, rows = index.search(users, wanted.tolist(), exclude)
    assert scores.shape == rows.shape == (40, wanted.max())
    for member, count in enumerate(wanted.tolist()):
        alone = index.search(users[member : member + 1], count, [exclude[member]])
        np.testing.assert_array_equal(rows[member, :count], alone[1][0])
        np.testing.assert_allclose(scores[member, :count], alone[0][0], rtol=1e-4)
        assert (rows[member, count:] == -1).all()
        assert np.isneginf(scores[member, count:]).all()


def test_a_matrix_product_that_overflows_gives_finite_scores_and_every_row_once():
    items = np.full((300, 8), 1e14, dtype=np.float32)
    items[::2] *= -1
    index = build_index(items, kind="flat")
    users = np.full((10, 8), 3e38, dtype=np.float32)
    users[1::2, ::2] *= -1  # inf - inf
    scores, rows = index.search(users, 299, [np.array([7])] * 10)
    assert np.isfinite(scores).all()
    assert all(sorted(found) == [row for row in range(300) if row != 7] for found in rows.tolist())


def test_a_query_of_any_length_is_scaled_and_its_scores_scaled_back():
    queries = np.array([[3.0, 4.0], [0.0, 0.0], [3e38, 3e38], [1e-30, 0.0]], dtype=np.float32)
    extended, scale = extended_queries(queries, 3)
    np.testing.assert_allclose(extended[0], [0.6, 0.8, 1.0], rtol=1e-6)
    assert np.isfinite(extended).all()
    np.testing.assert_allclose(scale[:2, 0], [5.0, 0.0], atol=1e-30)


@pytest.mark.parametrize("kind", ["flat", "torch", "ivf_pq_fs"])
def test_a_kind_that_searches_the_item_embeddings_holds_no_second_copy(vectors, kind, tmp_path):
    items, _ = vectors
    index = build_index(items, kind=kind)
    assert index.embeddings is items
    index.save(tmp_path / "index")
    codes = 0 if kind != "ivf_pq_fs" else 33 / 2 * len(items)
    lists = 4 * 20_000**0.5 * 33 * 4 + 16 * len(items)
    assert (tmp_path / "index").stat().st_size < codes + (0 if kind != "ivf_pq_fs" else lists) + 50_000
    again = AnnIndex.open(tmp_path / "index", kind=kind, metric="inner_product", embeddings=items)
    assert np.shares_memory(again.embeddings, items)


def test_auto_takes_what_was_measured_fastest(monkeypatch):
    assert choose_kind(3_706) == "flat"
    assert choose_kind(1_000_000) == "ivf_pq_fs"
    assert choose_kind(1_000_000, target_overlap=1.0) == "flat"
    assert choose_kind(1_000_000, device="cuda:1") == "torch"
    items = generate_embeddings(400, 8, num_users=1)[0]
    assert build_index(items).kind == "flat"
    monkeypatch.setattr(ann, "choose_kind", lambda num_items, **_: "ivf_pq_fs")
    assert build_index(items).kind == "ivf_pq_fs"


@pytest.mark.parametrize("table", [CPU, CUDA])
def test_the_table_of_choices_knows_every_size_and_only_real_kinds(table):
    sizes = [choice.max_items for choice in table]
    assert sizes[-1] is None
    assert sizes[:-1] == sorted(sizes[:-1])
    assert all(choice.kind in index_kinds.KINDS for choice in table)
