"""Where a new item is put: beside its like, as popular as a median item, and found by the same users."""

from __future__ import annotations

import numpy as np
import pytest

from index_builder.item_features import ItemFeatures, fit_features, read_features, write_features
from index_builder.new_items import FEATURES_COUNT, ItemSpace, embed_new_item, item_space


def test_a_new_item_by_hand() -> None:
    """Popularity along (1, 0); likes across it: (0, 2) twice as often as (0, 0.5). Median popularity is 3."""
    items = np.array([[3, 2], [3, 0.5], [3, -1], [9, 0], [0, 0]], dtype=np.float32)
    space = ItemSpace(items, np.array([1, 0], np.float32), median_popularity=3.0, median_length=1.0)
    placed = embed_new_item(space, np.array([0, 1]), np.array([2.0, 1.0]))
    np.testing.assert_allclose(placed, [3, 1.5], atol=1e-6)
    np.testing.assert_allclose(embed_new_item(space, np.array([2]), np.array([1.0])), [3, -1], atol=1e-6)


def test_likes_that_say_nothing_place_nothing() -> None:
    items = np.array([[1, 1], [1, -1], [5, 0]], dtype=np.float32)
    space = ItemSpace(items, np.array([1, 0], np.float32), 1.0, 1.0)
    none = np.empty(0, dtype=np.int64)
    assert embed_new_item(space, none, none) is None
    assert embed_new_item(space, np.array([0, 1]), np.array([1.0, 1.0])) is None, "they cancel"
    assert embed_new_item(space, np.array([2]), np.array([1.0])) is None, "nothing but popularity"


def test_features_give_way_to_what_was_counted() -> None:
    items = np.array([[0, 1, 0], [0, 0, 1]], dtype=np.float32)
    space = ItemSpace(items, np.array([1, 0, 0], np.float32), 0.5, 1.0)
    said, one = np.array([0, 0, 7.0]), np.array([0])
    by_features = embed_new_item(space, one[:0], one[:0].astype(float), said)
    np.testing.assert_allclose(by_features, [0.5, 0, 1], atol=1e-6)
    both = embed_new_item(space, one, np.array([FEATURES_COUNT]), said)
    np.testing.assert_allclose(both, [0.5, np.sqrt(0.5), np.sqrt(0.5)], atol=1e-6)
    mostly_counted = embed_new_item(space, one, np.array([1e6 * FEATURES_COUNT]), said)
    np.testing.assert_allclose(mostly_counted, [0.5, 1, 0], atol=1e-4)


def made_up_items(num_items: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Items of 20 tastes whose popularity lies along one axis, as a softmax leaves them; tastes of them."""
    tastes, popular = generator.normal(size=(20, 16)), generator.normal(size=16)
    popular /= np.linalg.norm(popular)
    tastes -= (tastes @ popular)[:, None] * popular
    taste = generator.integers(20, size=num_items)
    items = tastes[taste] + 0.3 * generator.normal(size=(num_items, 16))
    popularity = np.sort(generator.normal(size=num_items))[::-1]
    return (items + 2 * popularity[:, None] * popular).astype(np.float32), taste


def test_a_new_item_of_a_taste_is_as_popular_as_the_median_and_points_where_its_like_do() -> None:
    items, taste = made_up_items(2_000, np.random.default_rng(0))
    space = item_space(items, np.arange(2_000))
    across = space.across(np.arange(2_000))
    for wanted in range(20):
        rows = np.flatnonzero(taste == wanted)[::5]
        placed = embed_new_item(space, rows, np.ones(len(rows)))
        assert placed is not None
        assert placed @ space.popular == pytest.approx(np.median(items @ space.popular), abs=1e-3)
        lengths = np.linalg.norm(across[rows], axis=1)
        length = np.linalg.norm(placed - (placed @ space.popular) * space.popular)
        assert lengths.min() < length < lengths.max()
        cosine = across @ placed / np.linalg.norm(across, axis=1)
        found = np.argsort(-cosine)[:20]
        assert (taste[found] == wanted).mean() > 0.8


def test_ridge_regression_is_the_one_of_the_normal_equations() -> None:
    generator = np.random.default_rng(1)
    has = generator.random((300, 12)) < 0.3
    has[:, :2] |= True
    across = generator.normal(size=(300, 5))
    tokens = [[f"t{t}" for t in np.flatnonzero(row)] for row in has]
    fitted = fit_features(across, tokens, ridge=4.0)
    order = [int(token[1:]) for token in fitted.tokens]
    x = has[:, order].astype(float)
    y = across - across.mean(axis=0)
    expected = np.linalg.solve(x.T @ x + 4.0 * np.eye(12), x.T @ y)
    np.testing.assert_allclose(fitted.embeddings, expected, atol=1e-5)
    np.testing.assert_allclose(fitted.mean, across.mean(axis=0), atol=1e-6)


def test_features_are_read_as_written_and_unknown_tokens_say_nothing(tmp_path) -> None:
    features = ItemFeatures(["a=é", "b=2"], np.eye(2, 3, dtype=np.float32), np.ones(3, np.float32))
    write_features(tmp_path / "features.safetensors", features)
    read = read_features(tmp_path / "features.safetensors", 3)
    assert list(read.tokens) == ["a=é", "b=2"]
    np.testing.assert_array_equal(read.direction(["b=2", "b=2", "c=9"]), [1, 2, 1])
    assert read.direction(["c=9"]) is None
    with pytest.raises(ValueError, match="2 tokens"):
        read_features(tmp_path / "features.safetensors", 4)


def test_features_that_nobody_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="no feature is shared"):
        fit_features(np.eye(3), [["a=1"], ["a=2"], []])
