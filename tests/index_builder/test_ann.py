"""What every index promises: K distinct allowed rows, best first, whatever FAISS itself does."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from index_builder import ann
from index_builder.ann import KINDS, AnnIndex, build_index
from index_builder.overlap import ann_overlap, tune
from model.two_tower import Metric

torch.set_num_threads(1)
ann.set_num_threads(1)

METRICS: list[Metric] = ["inner_product", "l2"]
APPROXIMATE = ["flat_fp16", "ivf_flat", "hnsw", "ivf_pq_fs"]


def clustered(num_items: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    """Embeddings around a few centres, as trained ones are.   -> (M, D)"""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(1, num_items // 40), dim)) * 2
    items = centres[rng.integers(len(centres), size=num_items)] + rng.standard_normal((num_items, dim)) * 0.3
    return items.astype(np.float32)


def brute_force(
    embeddings: np.ndarray, query: np.ndarray, metric: Metric, top_k: int, excluded: np.ndarray
) -> np.ndarray:
    """The best scores in float64, without the excluded rows."""
    wide, query = embeddings.astype(np.float64), query.astype(np.float64)
    scores = wide @ query if metric == "inner_product" else -((wide - query) ** 2).sum(axis=1)
    return np.sort(np.delete(scores, np.unique(excluded)))[::-1][:top_k]


def exclusion_of(style: str, num_items: int, top_k: int, rng: np.random.Generator) -> np.ndarray | None:
    """Rows to exclude: none, a few, or so many that exactly `top_k` (or fewer) are left."""
    if style == "none":
        return None
    if style == "all":
        return np.arange(num_items)
    size = max(0, num_items - top_k) if style == "all_but_k" else int(rng.integers(0, num_items + 1))
    rows = rng.permutation(num_items)[:size]
    return np.concatenate([rows, rows[:3], [-1, num_items, num_items + 7]])  # repeats, and rows that are none


@given(
    num_items=st.integers(1, 200),
    dim=st.integers(1, 9),
    batch_size=st.integers(1, 5),
    top_k=st.integers(1, 220),
    metric=st.sampled_from(METRICS),
    styles=st.lists(st.sampled_from(["none", "some", "all_but_k", "all"]), min_size=5, max_size=5),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_flat_search_equals_brute_force(num_items, dim, batch_size, top_k, metric, styles, seed):
    rng = np.random.default_rng(seed)
    embeddings = rng.standard_normal((num_items, dim)).astype(np.float32)
    embeddings[rng.integers(num_items, size=num_items // 5)] = embeddings[0]  # equal scores
    queries = rng.standard_normal((batch_size, dim)).astype(np.float32)
    exclude = [exclusion_of(style, num_items, top_k, rng) for style in styles[:batch_size]]
    scores, rows = build_index(embeddings, metric=metric).search(queries, top_k, exclude)
    assert scores.shape == rows.shape == (batch_size, top_k)
    for b in range(batch_size):
        none = np.empty(0, dtype=np.int64)
        excluded = none if exclude[b] is None else exclude[b]
        excluded = excluded[(excluded >= 0) & (excluded < num_items)]
        expected = brute_force(embeddings, queries[b], metric, top_k, excluded)
        check_promises(scores[b], rows[b], excluded, len(expected))
        np.testing.assert_allclose(scores[b, : len(expected)], expected, rtol=1e-4, atol=1e-4)
        found = embeddings[rows[b, : len(expected)]]
        own = brute_force(found, queries[b], metric, len(found), none)
        np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-4)


def check_promises(scores: np.ndarray, rows: np.ndarray, excluded: np.ndarray, available: int) -> None:
    """Exactly `available` results, distinct, allowed, best first; then only (-inf, -1)."""
    found = rows[:available]
    assert (found >= 0).all()
    assert len(set(found.tolist())) == available
    assert not set(found.tolist()) & set(excluded.tolist())
    assert np.isfinite(scores[:available]).all()
    assert (np.diff(scores[:available]) <= 0).all()
    assert (rows[available:] == -1).all()
    assert (scores[available:] == -np.inf).all()


@pytest.fixture(scope="module")
def indexes() -> dict[tuple[str, str], AnnIndex]:
    embeddings = clustered(600)
    return {
        (kind, metric): build_index(embeddings, kind=kind, metric=metric)
        for kind in KINDS
        for metric in METRICS
    }


@pytest.mark.parametrize("kind", APPROXIMATE)
@given(
    metric=st.sampled_from(METRICS),
    top_ks=st.lists(st.integers(1, 700), min_size=1, max_size=4),
    styles=st.lists(st.sampled_from(["none", "some", "all_but_k", "all"]), min_size=4, max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_every_other_kind_gives_k_distinct_allowed_rows(indexes, kind, metric, top_ks, styles, seed):
    index = indexes[kind, metric]
    rng = np.random.default_rng(seed)
    queries = rng.standard_normal((len(top_ks), index.dim)).astype(np.float32)
    exclude = [exclusion_of(style, index.num_items, k, rng) for style, k in zip(styles, top_ks, strict=False)]
    scores, rows = index.search(queries, top_ks, exclude)
    assert rows.shape == (len(top_ks), max(top_ks))
    for b, top_k in enumerate(top_ks):
        excluded = np.empty(0, dtype=np.int64) if exclude[b] is None else exclude[b]
        excluded = excluded[(excluded >= 0) & (excluded < index.num_items)]
        available = min(top_k, index.num_items - len(np.unique(excluded)))
        check_promises(scores[b], rows[b], excluded, available)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", list(KINDS))
def test_saved_index_answers_as_before(indexes, kind, metric, tmp_path):
    index = indexes[kind, metric]
    queries = clustered(20, seed=3)
    index.save(tmp_path / "index.faiss")
    loaded = AnnIndex.open(tmp_path / "index.faiss", kind=kind, metric=metric, embeddings=clustered(600))
    assert loaded.width == index.width
    for before, after in zip(index.search(queries, 50), loaded.search(queries, 50), strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_tuned_width_survives_saving(tmp_path):
    embeddings = np.random.default_rng(0).standard_normal((4_000, 16)).astype(np.float32)
    index = build_index(embeddings, kind="ivf_flat")
    queries = embeddings[:64] + 0.1
    width, before = index.width, ann_overlap(index, embeddings, queries)
    after = tune(index, queries, target_overlap=0.99)
    assert before < 0.99 <= after
    assert index.width > width
    index.save(tmp_path / "index")
    loaded = AnnIndex.open(tmp_path / "index", kind="ivf_flat", metric="inner_product", embeddings=embeddings)
    assert loaded.width == index.width


@pytest.mark.parametrize("kind", ["flat", "ivf_flat", "hnsw", "ivf_pq_fs"])
def test_an_answer_does_not_depend_on_who_shares_the_batch(kind):
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((2_000, 32)).astype(
        np.float32
    )  # no clusters: a narrow search misses much
    index = build_index(embeddings, kind=kind)
    index.width = min(index.width, 4)
    queries = rng.standard_normal((8, 32)).astype(np.float32)
    exclude = [
        None,
        np.arange(5),
        np.arange(100),
        np.arange(1_500),
        None,
        np.arange(3),
        None,
        np.arange(1_995),
    ]
    top_ks = [10, 20, 10, 30, 300, 1, 10, 10]
    scores, rows = index.search(queries, top_ks, exclude)
    for b in range(8):
        alone_scores, alone_rows = index.search(queries[b : b + 1], top_ks[b], exclude[b : b + 1])
        np.testing.assert_array_equal(rows[b, : top_ks[b]], alone_rows[0])
        np.testing.assert_allclose(scores[b, : top_ks[b]], alone_scores[0], rtol=1e-5)


def test_overlap_is_one_for_exact_indexes_and_low_for_a_wrong_one(indexes):
    embeddings, queries = clustered(600), clustered(40, seed=9)
    assert ann_overlap(indexes["flat", "inner_product"], embeddings, queries) == 1.0
    assert ann_overlap(indexes["flat", "l2"], embeddings, queries) == 1.0
    shuffled = embeddings[np.random.default_rng(1).permutation(600)]
    wrong = build_index(shuffled)
    assert ann_overlap(wrong, embeddings, queries) < 0.5


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_query_that_is_not_finite_is_refused(indexes, kind, bad):
    queries = np.zeros((3, 8), dtype=np.float32)
    queries[1, 4] = bad
    with pytest.raises(ValueError, match="query 1 holds NaN or infinity"):
        indexes[kind, "inner_product"].search(queries, 10)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", list(KINDS))
def test_scores_that_overflow_still_give_k_rows(indexes, kind, metric):
    scores, rows = indexes[kind, metric].search(clustered(4, seed=2) * np.float32(5e37), 30)
    for b in range(4):
        check_promises(scores[b], rows[b], np.empty(0), 30)


def test_an_empty_batch_gives_an_empty_answer(indexes):
    scores, rows = indexes["flat", "l2"].search(np.empty((0, 8), dtype=np.float32), 10)
    assert scores.shape == rows.shape == (0, 0) or scores.shape == (0, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "annoy"}, "index kind must be auto or one of flat"),
        ({"metric": "cosine"}, "metric must be inner_product or l2, got 'cosine'"),
        ({"kind": "ivf_pq_fs"}, "needs at least 256 items to train on, got 50: use 'flat'"),
        ({"device": "mps"}, "runs on cpu or cuda, got device 'mps'"),
    ],
)
def test_a_wrong_choice_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_index(clustered(50), **arguments)


def test_embeddings_that_are_not_finite_are_refused():
    embeddings = clustered(50)
    embeddings[7, 2] = np.nan
    with pytest.raises(ValueError, match="embeddings of 1 items hold NaN or infinity, the first is row 7"):
        build_index(embeddings)
    embeddings[7, 2] = 1e30
    with pytest.raises(ValueError, match=r"hold a value of 1e\+30"):
        build_index(embeddings)


@pytest.mark.parametrize("queries", [np.zeros((2, 7)), np.zeros(8), np.zeros((1, 1, 8))])
def test_queries_of_another_shape_are_refused(indexes, queries):
    with pytest.raises(ValueError, match=r"queries must be \(B, 8\)"):
        indexes["flat", "l2"].search(queries, 10)


def test_top_k_and_exclusions_are_checked(indexes):
    queries = np.zeros((2, 8), dtype=np.float32)
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        indexes["flat", "l2"].search(queries, [5, 0])
    with pytest.raises(ValueError, match="one entry per query, got 1 for 2"):
        indexes["flat", "l2"].search(queries, 5, [None])


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_index_of_other_embeddings_or_another_kind_is_refused(indexes, kind, tmp_path):
    path = tmp_path / "index"
    indexes[kind, "l2"].save(path)
    if KINDS[kind].holds_items:
        with pytest.raises(ValueError, match="the index holds 600 vectors"):
            AnnIndex.open(path, kind=kind, metric="l2", embeddings=clustered(599))
    with pytest.raises(
        ValueError, match=r"the index holds \d+ vectors of 8 dimensions|does not compare by inner"
    ):
        AnnIndex.open(path, kind=kind, metric="inner_product", embeddings=clustered(600))
    other = "hnsw" if kind != "hnsw" else "flat"
    with pytest.raises(ValueError, match=f"which is not kind '{other}'"):
        AnnIndex.open(path, kind=other, metric="l2", embeddings=clustered(600))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="FAISS cannot read the index"):
        AnnIndex.open(path, kind=kind, metric="l2", embeddings=clustered(600))


@pytest.mark.skipif(ann.num_gpus() > 0, reason="a GPU is there")
def test_a_missing_gpu_is_said_and_the_cpu_used(caplog):
    with caplog.at_level(logging.WARNING):
        index = build_index(clustered(100), device="cuda")
    assert index.device == "cpu"
    assert "device cuda was asked for, the index runs on the CPU" in caplog.text
    assert index.search(clustered(3), 10)[1].shape == (3, 10)


@pytest.mark.skipif(ann.num_gpus() == 0, reason="needs a GPU and faiss-gpu")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.on_gpu])
def test_a_gpu_index_keeps_every_promise(kind, metric, tmp_path):
    """Not run: no GPU was at hand."""
    embeddings = clustered(5_000, dim=32)
    index = build_index(embeddings, kind=kind, metric=metric, device="cuda")
    assert index.device == "cuda:0"
    queries = clustered(8, dim=32, seed=4)
    exclude = [None, np.arange(50), np.arange(1_000), np.arange(4_990)] * 2
    scores, rows = index.search(queries, 100, exclude)
    for b in range(8):
        excluded = np.empty(0, dtype=np.int64) if exclude[b] is None else exclude[b]
        check_promises(scores[b], rows[b], excluded, min(100, 5_000 - len(excluded)))
    assert ann_overlap(index, embeddings, queries) > 0.9
    index.save(tmp_path / "index")
    on_cpu = AnnIndex.open(tmp_path / "index", kind=kind, metric=metric, embeddings=embeddings)
    np.testing.assert_allclose(scores, on_cpu.search(queries, 100, exclude)[0], rtol=1e-2)
