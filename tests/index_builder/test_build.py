"""A build gives a bundle that answers as its checkpoint does, or refuses and leaves nothing behind."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from index_builder import build
from index_builder.ann import KINDS, build_index
from index_builder.build import STAGES, build_bundle
from index_builder.bundle import load_bundle
from index_builder.canary import canary_mismatch, replay_canary
from index_builder.candidates import recall_sequences
from index_builder.clustered_embeddings import generate_embeddings
from index_builder.embed_items import embed_items, embed_prefixes
from index_builder.publish import Store
from index_builder.quality import QualityError
from model.batch import UNKNOWN_TIME, Sequence, collate
from model.engines.interface import EagerTower
from model.evaluation import score_items
from model.noise import request_key


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_index_kind_builds_loads_and_replays(make_checkpoint, tmp_path, kind):
    store = Store(tmp_path / "store")
    checkpoint = make_checkpoint(num_items=400)
    bundle_id = build_bundle(checkpoint, store, index_kind=kind)
    store.publish(bundle_id)
    bundle = load_bundle(store.bundle_url(bundle_id))
    assert bundle.index.kind == bundle.manifest["index"]["kind"] == kind
    assert bundle.index.width == bundle.manifest["index"]["width"]
    assert bundle.manifest["index"]["ann_overlap_at_100"] >= 0.99
    replay_canary(bundle.model, bundle.index, bundle.item_ids, bundle.canary)


def test_a_build_on_object_storage_is_the_same(checkpoint, store_url):
    store = Store(store_url)
    bundle_id = build_bundle(checkpoint, store)
    assert store.current() is None  # building does not publish
    store.publish(bundle_id)
    assert load_bundle(store.bundle_url(bundle_id)).item_ids == checkpoint.item_ids


def test_builds_in_one_second_get_different_ids(checkpoint, tmp_path):
    store = Store(tmp_path / "store")
    ids = [build_bundle(checkpoint, store) for _ in range(3)]
    assert sorted(ids) == sorted(store.bundle_ids())
    assert len(set(ids)) == 3


def test_the_stages_are_reported_in_order(checkpoint, tmp_path):
    reported: list[str] = []
    build_bundle(checkpoint, Store(tmp_path / "store"), report=reported.append)
    assert tuple(reported) == STAGES


def test_others_may_read_what_was_built(checkpoint, tmp_path):
    store = Store(tmp_path / "store")
    folder = Path(store.bundle_url(build_bundle(checkpoint, store)))
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    assert folder.stat().st_mode == (tmp_path / "folder").stat().st_mode  # what the umask allows
    for path in folder.iterdir():
        assert path.stat().st_mode == (tmp_path / "file").stat().st_mode, path.name


def broken(checkpoint, change):
    """The checkpoint with its item table changed in place, in a model of its own."""
    weights = {name: tensor.clone() for name, tensor in checkpoint.model.state_dict().items()}
    change(weights["item_table.weight"])
    checkpoint.model.load_state_dict(weights)
    return checkpoint


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (lambda table: table[5].fill_(torch.nan), "embedding_non_finite_share"),
        (lambda table: table[5:20].fill_(0.0), "embedding_zero_share"),
        (lambda table: table[5].mul_(1e4), "embedding_norm_max_over_median"),
        (lambda table: table[5:40].copy_(table[5].clone()), "embedding_duplicate_share"),
    ],
)
def test_a_broken_item_tower_is_refused_and_nothing_is_left(make_checkpoint, tmp_path, change, check):
    store = Store(tmp_path / "store")
    with pytest.raises(QualityError, match=check):
        build_bundle(broken(make_checkpoint(3), change), store)
    assert not (tmp_path / "store").exists()


def test_a_broken_user_tower_is_refused_and_nothing_is_left(make_checkpoint, tmp_path):
    checkpoint = make_checkpoint(3)
    with torch.no_grad():
        next(checkpoint.model.attention.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="the user embedding is broken"):
        build_bundle(checkpoint, Store(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_a_build_that_fails_while_writing_leaves_nothing(checkpoint, tmp_path):
    unwritable = dataclasses.replace(checkpoint, item_ids=["\ud800", *checkpoint.item_ids[1:]])
    with pytest.raises(ValueError, match="surrogates"):
        build_bundle(unwritable, Store(tmp_path / "store"))
    assert [path.name for path in (tmp_path / "store").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"item_ids": ["a", "b"]}, "2 item ids for 60 items"),
        ({"item_ids": ["a"] * 60}, "item ids are not distinct"),
        ({"canary": []}, "no canary sequences"),
    ],
)
def test_a_checkpoint_that_cannot_make_a_bundle_is_refused(checkpoint, tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        build_bundle(dataclasses.replace(checkpoint, **fields), Store(tmp_path / "store"))


def test_metrics_that_are_not_numbers_become_null(checkpoint, tmp_path):
    store = Store(tmp_path / "store")
    odd = dataclasses.replace(checkpoint, metrics={"validation/recall_at_20": float("nan")})
    manifest = store.check(build_bundle(odd, store))
    assert manifest["offline_metrics"] == {"validation/recall_at_20": None}


def test_item_embeddings_are_row_by_row_those_of_the_model(checkpoint):
    embeddings = embed_items(checkpoint.model)
    assert embeddings.shape == (60, 8)
    assert embeddings.dtype == np.float32
    np.testing.assert_array_equal(embeddings[41], checkpoint.model.item_table.weight[42].detach().numpy())


def test_queries_are_user_embeddings_after_each_behaviour(checkpoint):
    queries = embed_prefixes(checkpoint.model, checkpoint.canary)
    assert queries.shape == (1 + 4 + 9, 8)
    assert np.isfinite(queries).all()
    assert embed_prefixes(checkpoint.model, checkpoint.canary, max_queries=5).shape == (5, 8)


def test_recall_excludes_by_item_index_and_says_where_items_ran_out(checkpoint, built):
    bundle = load_bundle(built)
    sequence = checkpoint.canary[1]
    exclude = np.arange(1, 51)  # 10 of 60 items are left
    found = recall_sequences(
        bundle.model, bundle.index, [sequence, sequence], [1, 1], top_k=[20, 5], exclude=[exclude, None]
    )
    assert found.item_index.shape == (2, 20)
    assert sorted(found.item_index[0, :10].tolist()) == list(range(51, 61))
    assert (found.item_index[0, 10:] == 0).all()
    assert (found.score[0, 10:] == -np.inf).all()
    assert len(set(found.item_index[1, :5].tolist())) == 5
    assert (found.item_index[1, 5:] == 0).all()
    assert found.tower_seconds > 0
    assert found.search_seconds > 0


def test_batched_recall_equals_single_recall(checkpoint, built):
    bundle = load_bundle(built)
    keys = [request_key(0, f"u{number}") for number in range(3)]
    together = recall_sequences(bundle.model, bundle.index, checkpoint.canary, keys, top_k=10)
    for row, (sequence, key) in enumerate(zip(checkpoint.canary, keys, strict=True)):
        alone = recall_sequences(bundle.model, bundle.index, [sequence], [key], top_k=10)
        np.testing.assert_allclose(alone.score[0], together.score[row], rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(alone.item_index[0], together.item_index[row])


def test_several_routes_answer_with_each_items_best_score(make_checkpoint, tmp_path):
    """Built, loaded, its canary replayed; and exactly what ranking every item by its best route gives."""
    checkpoint = make_checkpoint(num_routes=3, drift_scale=1.0)
    store = Store(tmp_path / "store")
    bundle = load_bundle(store.bundle_url(build_bundle(checkpoint, store)))
    keys = [request_key(0, f"u{number}") for number in range(3)]
    exclude = [None, np.arange(1, 21), None]
    found = recall_sequences(
        bundle.model, bundle.index, checkpoint.canary, keys, top_k=[10, 10, 4], exclude=exclude
    )
    batch = collate(checkpoint.canary, max_length=checkpoint.model.max_length)
    routes = EagerTower(checkpoint.model).user_embeddings(batch, keys)
    assert routes.shape == (3, 3, 8)
    score = score_items(routes, checkpoint.model.item_embeddings().detach(), "inner_product").numpy()
    score[1, :20] = -np.inf
    for row, count in enumerate((10, 10, 4)):
        best = np.argsort(-score[row])[:count]
        np.testing.assert_array_equal(found.item_index[row, :count], best + 1)
        np.testing.assert_allclose(found.score[row, :count], score[row, best], rtol=1e-4, atol=1e-6)
    assert (found.item_index[2, 4:] == 0).all()
    replay_canary(bundle.model, bundle.index, bundle.item_ids, bundle.canary)


def test_recall_of_an_empty_sequence_is_refused(built):
    bundle = load_bundle(built)
    nothing = Sequence(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), UNKNOWN_TIME)
    with pytest.raises(ValueError, match="sequence 0 is empty"):
        recall_sequences(bundle.model, bundle.index, [nothing], [1], top_k=5)


def test_a_canary_allows_rounding_and_near_ties_but_nothing_else(built):
    case = load_bundle(built).canary[0]
    case = dataclasses.replace(case, candidates=["a", "b", "c"], scores=[2.0, 1.0, 0.9995], top_k=3)
    assert canary_mismatch(case, ["a", "b", "c"], [2.0, 1.0, 0.9995]) is None
    assert canary_mismatch(case, ["a", "c", "b"], [2.001, 1.0, 1.0]) is None
    assert canary_mismatch(case, ["a", "b", "d"], [2.0, 1.0, 0.9995]) is None  # d ties with c at the end
    assert canary_mismatch(case, ["b", "a", "c"], [2.0, 1.0, 0.9995])
    assert canary_mismatch(case, ["a", "d", "c"], [2.0, 1.2, 0.9995])
    assert canary_mismatch(case, ["a", "b", "c"], [2.01, 1.0, 0.9995])
    assert canary_mismatch(case, ["a", "b", "c"], [2.0, float("nan"), 0.9995])
    assert canary_mismatch(case, ["a", "b"], [2.0, 1.0])
    assert canary_mismatch(case, ["a", "b", "b"], [2.0, 1.0, 1.0])


def test_an_approximate_answer_may_hold_a_few_other_candidates(built):
    names = [f"item-{number}" for number in range(10)]
    case = load_bundle(built).canary[0]
    scores = [10.0 - number for number in range(10)]
    case = dataclasses.replace(case, candidates=names, scores=scores, top_k=10)
    lost = [*names[:4], *names[5:], "other"]  # item-4 was not looked at, the next best came instead
    lost_scores = [10.0, 9.0, 8.0, 7.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.5]
    found = [*names[:4], "other", *names[4:9]]  # or one was found that had been missed
    found_scores = [10.0, 9.0, 8.0, 7.0, 6.5, 6.0, 5.0, 4.0, 3.0, 2.0]
    for candidates, scores in ((lost, lost_scores), (found, found_scores)):
        assert canary_mismatch(case, candidates, scores)
        assert canary_mismatch(case, candidates, scores, max_replaced=1) is None
    two = [*names[:4], *names[6:], "other", "another"]
    two_scores = [10.0, 9.0, 8.0, 7.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.4]
    assert canary_mismatch(case, two, two_scores, max_replaced=1)
    assert canary_mismatch(case, two, two_scores, max_replaced=2) is None
    assert canary_mismatch(case, names, [10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 0.5], max_replaced=2)
    swapped = [names[1], names[0], *names[2:]]
    assert canary_mismatch(case, swapped, case.scores, max_replaced=2)
    nan = [float("nan"), *case.scores[1:]]
    assert canary_mismatch(case, ["other", *names[1:]], nan, max_replaced=2)


def test_the_overlap_of_a_build_is_that_of_users_that_it_was_not_tuned_on(monkeypatch):
    items, users = generate_embeddings(2_000, 16, num_users=41)
    index = build_index(items, kind="ivf_flat")
    seen = []
    monkeypatch.setattr(build, "tune", lambda index, queries, target_overlap: seen.append(queries))
    monkeypatch.setattr(build, "ann_overlap", lambda index, items, queries: seen.append(queries))
    build._tune_and_measure(index, items, users, 0.9)
    tuned_on, measured_on = seen
    assert len(tuned_on) + len(measured_on) == 41
    assert not {row.tobytes() for row in tuned_on} & {row.tobytes() for row in measured_on}
