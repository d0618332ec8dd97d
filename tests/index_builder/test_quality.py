"""Broken item towers are refused, sound ones are not, and the message says which figure was wrong."""

from __future__ import annotations

import numpy as np
import pytest

from index_builder.quality import Check, QualityError, check_embeddings, check_overlap, require


def sound(num_items: int = 500) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((num_items, 8)).astype(np.float32)


def failures(embeddings: np.ndarray) -> list[str]:
    return [check.name for check in check_embeddings(embeddings) if not check.passed]


def test_sound_embeddings_pass_every_check():
    require(check_embeddings(sound()))
    assert len(check_embeddings(sound())) == 4


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_fails(bad):
    embeddings = sound()
    embeddings[499, 7] = bad
    assert failures(embeddings) == ["embedding_non_finite_share"]


def test_items_without_an_embedding_fail():
    embeddings = sound()
    embeddings[:6] = 0
    assert failures(embeddings) == ["embedding_zero_share"]
    assert "embedding_zero_share" in failures(np.zeros((10, 4), dtype=np.float32))


def test_an_exploded_item_fails():
    embeddings = sound()
    embeddings[3] *= 1_000
    assert failures(embeddings) == ["embedding_norm_max_over_median"]


def test_a_collapsed_table_fails():
    embeddings = sound()
    embeddings[100:200] = embeddings[0]
    assert failures(embeddings) == ["embedding_duplicate_share"]
    share = next(check.value for check in check_embeddings(embeddings) if "duplicate" in check.name)
    assert share == pytest.approx(100 / 500)


def test_an_index_that_finds_too_little_fails():
    assert check_overlap(0.9).passed
    assert not check_overlap(0.89).passed
    assert not check_overlap(float("nan")).passed


def test_every_failed_check_is_named_with_figure_and_limit():
    low, high = Check("low", 0.5, at_least=0.9), Check("high", 7.0, at_most=2.0)
    with pytest.raises(QualityError, match=r"low is 0\.5, must be at least 0\.9; high is 7, must be"):
        require([Check("good", 1.0, at_least=1.0), low, high])
