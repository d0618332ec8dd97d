"""Published counts of the real data sets, where they are at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from model.data.dataset import leave_one_out
from model.data.interactions import Rules
from model.data.reader import read_interactions

SHARED = Path(__file__).parents[3].parent / "shared" / "data"
RATINGS = SHARED / "ml-1m" / "ratings.parquet"
IMPRESSIONS = SHARED / "kuairand" / "impressions.parquet"

needs_movielens = pytest.mark.skipif(not RATINGS.exists(), reason=f"{RATINGS} is not here")
needs_kuairand = pytest.mark.skipif(not IMPRESSIONS.exists(), reason=f"{IMPRESSIONS} is not here")


@needs_movielens
def test_movielens_1m_has_its_published_counts_and_keeps_its_order():
    log = read_interactions([RATINGS.parent])
    assert (log.num_users, log.num_items, len(log)) == (6_040, 3_706, 1_000_209)
    raw = pq.read_table(RATINGS, columns=["item_id"])["item_id"].to_numpy()  # sorted, ties as in the original
    np.testing.assert_array_equal(np.array(log.item_ids, dtype=np.int64)[log.item_index - 1], raw)
    assert log.fingerprint == read_interactions([RATINGS]).fingerprint
    split = leave_one_out(log)
    assert (len(split.train), len(split.validation), len(split.test)) == (1_000_209 - 2 * 6_040, 6_040, 6_040)


@needs_movielens
def test_the_last_190_of_movielens_1m_come_near_the_papers_counts():
    log = read_interactions([RATINGS], rules=Rules(max_per_user=190))
    assert (log.num_items, len(log)) == (3_645, 644_754)


@needs_kuairand
def test_the_kuairand_slice_has_its_counts():
    log = read_interactions([IMPRESSIONS.parent])
    read, *_, active = log.report
    assert (read.interactions, read.users, read.items) == (85_450, 20_250, 4_502)
    assert "228,329 rows; 85,450 rows with tab = 1 and is_click = 1" in read.note
    assert active.users == log.num_users == 6_441
