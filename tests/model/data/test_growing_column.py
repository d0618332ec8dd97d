"""Batches of any size go in, one array comes out."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from model.data.growing_column import GrowingColumn


@given(sizes=st.lists(st.integers(0, 12), max_size=10), block_rows=st.integers(1, 7))
def test_what_went_in_comes_out_in_order_and_the_column_can_be_filled_again(sizes, block_rows):
    column = GrowingColumn(np.int32, block_rows=block_rows)
    expected = np.arange(sum(sizes), dtype=np.int32)
    for _ in range(2):
        for batch in np.split(expected, np.cumsum(sizes)[:-1]):
            column.append(batch)
        assert len(column) == len(expected)
        taken = column.take()
        np.testing.assert_array_equal(taken, expected)
        assert (taken.dtype, len(column)) == (np.int32, 0)
