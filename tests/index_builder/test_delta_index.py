"""New and deleted items beside a bundle's index: exactly what one index without the deleted would say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from index_builder.ann import build_index
from index_builder.bundle import Bundle, load_bundle
from index_builder.candidates import recall_sequences
from index_builder.delta import Delta, NewItem
from index_builder.delta_index import DeltaIndex, build_delta_index
from index_builder.exact_search import exact_scores
from model.two_tower import Metric


@pytest.fixture(scope="module")
def bundle(built: Path) -> Bundle:
    return load_bundle(built)


def delta_of(items: dict[str, list[str]], deleted: Sequence[str] = ()) -> Delta:
    new = {name: NewItem(name, dict.fromkeys(similar, 1.0)) for name, similar in items.items()}
    return Delta(new, dict.fromkeys(deleted, 1), 1, "0" * 64, 1)


def names(bundle: Bundle, *rows: int) -> list[str]:
    return [bundle.item_ids[row] for row in rows]


@pytest.mark.parametrize("metric", ["inner_product", "l2"])
@pytest.mark.parametrize("num_routes", [1, 3])
@pytest.mark.parametrize("num_deleted", [0, 3, 150, 200])
@pytest.mark.parametrize("num_new", [0, 5, 40])
def test_the_answer_is_that_of_an_exact_search_over_everything_that_may_be_recalled(
    metric: Metric, num_routes: int, num_deleted: int, num_new: int
) -> None:
    random = np.random.default_rng(num_deleted + num_new)
    base = random.normal(size=(200, 8)).astype(np.float32)
    new = random.normal(size=(num_new, 8)).astype(np.float32)
    routes = random.normal(size=(7, num_routes, 8)).astype(np.float32)
    # Whom everybody would get first is deleted: many must be looked at until K are left.
    popular = np.argsort(-exact_scores(base, routes[0, 0], metric))[:num_deleted]
    delta = DeltaIndex(
        version="1-0",
        item_ids=[f"n{n}" for n in range(num_new)],
        row_of={f"n{n}": n for n in range(num_new)},
        embeddings=new,
        metric=metric,
        num_rows=200,
        deleted=frozenset(),
        deleted_rows=np.sort(popular),
        num_unplaced=0,
    )
    index = build_index(base, kind="flat", metric=metric)
    excluded = [random.choice(200, 20, replace=False) for _ in range(7)]
    excluded_new = [random.choice(num_new, 2, replace=False) if num_new else None for _ in range(7)]
    top_k = [1, 5, 10, 20, 30, 60, 100]

    def search(members: np.ndarray, counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
        from index_builder.candidates import _search

        return _search(index, routes[members], counts, [excluded[m] + 1 for m in members])

    score, rows = delta.search(search, routes, top_k, excluded_new)
    everything = np.concatenate([base, new])
    for user, count in enumerate(top_k):
        expected = np.max([exact_scores(everything, query, metric) for query in routes[user]], axis=0)
        expected[popular] = -np.inf
        expected[excluded[user]] = -np.inf
        if num_new:
            expected[200 + excluded_new[user]] = -np.inf
        best = np.argsort(-expected, kind="stable")[: min(count, int(np.isfinite(expected).sum()))]
        found = rows[user][rows[user] >= 0][:count]
        assert found.tolist() == best.tolist()
        np.testing.assert_allclose(score[user, : len(best)], expected[best], rtol=1e-4, atol=1e-4)


def test_nothing_new_and_nothing_deleted_is_no_delta(bundle: Bundle) -> None:
    assert build_delta_index(delta_of({}), bundle) is None


def test_items_of_the_bundle_win_over_the_delta_and_unplaced_ones_are_counted(bundle: Bundle) -> None:
    held = bundle.item_ids[3]
    wanted = {held: names(bundle, 5), "n1": names(bundle, 5), "n2": ["nobody", "knows"]}
    delta = build_delta_index(delta_of(wanted, deleted=[bundle.item_ids[8], "unheard-of"]), bundle)
    assert delta is not None
    assert delta.item_ids == ["n1"]
    assert delta.num_unplaced == 1
    assert delta.deleted_rows.tolist() == [8]


def test_a_new_item_is_recalled_by_whoever_is_recalled_its_like(bundle: Bundle) -> None:
    """Of all users, those who rank the similar item highest rank the new one highest."""
    delta = build_delta_index(delta_of({"n1": names(bundle, 5)}), bundle)
    assert delta is not None
    users = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
    to_like, to_new = users @ bundle.item_embeddings[5], users @ delta.embeddings[0]
    assert np.corrcoef(to_like, to_new)[0, 1] > 0.5


def test_deleted_items_leave_recall_and_new_ones_enter_it(bundle: Bundle) -> None:
    sequences = [case.sequence for case in bundle.canary]
    before = recall_sequences(bundle.model, bundle.index, sequences, [1, 2, 3], top_k=10)
    gone = names(bundle, *(before.item_index[:, :3].flatten() - 1).tolist())
    liked = names(bundle, *(before.item_index[:, 3] - 1).tolist())
    delta = build_delta_index(delta_of({f"n{n}": [name] for n, name in enumerate(liked)}, gone), bundle)
    assert delta is not None
    after = recall_sequences(
        bundle.model, bundle.index, sequences, [1, 2, 3], top_k=10, delta=delta, exclude_new=[None] * 3
    )
    held = {bundle.item_ids[item - 1] for item in after.item_index.flatten() if item <= len(bundle.item_ids)}
    assert not held & set(gone)
    assert (after.item_index > 0).all()
    for user in range(3):
        kept = [i for i in before.item_index[user] if bundle.item_ids[i - 1] not in gone]
        old = [i for i in after.item_index[user] if i <= len(bundle.item_ids)]
        assert old[: len(kept)] == kept[: len(old)], "the bundle's own order is what it was"
