"""Buckets, and a batch in one flat row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.batch import UNKNOWN_TIME, collate
from model.engines.gpu.graph import search_sizes
from model.engines.gpu.masked_search import masked_top_k
from model.engines.gpu.request_layout import RequestLayout, bucket_of, parts_of, rounded_up
from model.noise import route_keys
from tests.model.engines.conftest import sequences


def test_the_bucket_is_the_smallest_that_holds_the_batch() -> None:
    assert [bucket_of(size) for size in (1, 2, 3, 5, 64, 65, 256)] == [1, 2, 4, 8, 64, 128, 256]
    for size in (0, 257):
        with pytest.raises(ValueError, match=f"a batch of {size} requests fits no bucket"):
            bucket_of(size)


def test_a_larger_batch_is_split() -> None:
    assert parts_of(3) == [slice(0, 3)]
    assert parts_of(600) == [slice(0, 256), slice(256, 512), slice(512, 600)]


def test_counts_are_rounded_to_few_sizes() -> None:
    assert [rounded_up(count, least=64) for count in (0, 1, 64, 65, 1000)] == [64, 64, 64, 128, 1024]


def test_a_batch_survives_the_flat_row_and_what_is_behind_it_is_neutral() -> None:
    layout = RequestLayout(bucket=4, width=8, routes=2, num_excluded=5)
    batch = collate(sequences([3, 6, 1]), max_length=8)
    keys = [1, 2**64 - 1, 2**63]
    flat = torch.full((layout.size,), 99)  # what the last batch left
    layout.write(flat, batch, keys, [np.array([4, 5]), None, np.arange(1, 6)])
    parts = layout.parts(flat)
    assert torch.equal(parts.item_index[:3, :6], batch.item_index)
    assert torch.equal(parts.timestamp[:3, :6], batch.timestamp)
    assert torch.equal(parts.length, torch.tensor([3, 6, 1, 1]))
    assert torch.equal(parts.request_time[:3], batch.request_time)
    assert parts.keys[:6].numpy().view(np.uint64).tolist() == route_keys(keys, 2)
    assert parts.exclude.tolist() == [[4, 5, 0, 0, 0], [0] * 5, [1, 2, 3, 4, 5], [0] * 5]
    assert not parts.item_index[3].any()
    assert not parts.item_index[:, 6:].any()
    assert (parts.timestamp[3] == UNKNOWN_TIME).all()
    assert (parts.timestamp[:, 6:] == UNKNOWN_TIME).all()
    assert parts.request_time[3] == UNKNOWN_TIME
    assert not parts.keys[6:].any()


def test_parts_are_where_a_kernel_reads_them() -> None:
    layout = RequestLayout(bucket=4, width=8, routes=2, num_excluded=0)
    flat = torch.zeros(layout.size, dtype=torch.int64)
    parts = layout.parts(flat)
    for part in (parts.item_index, parts.timestamp, parts.length, parts.request_time, parts.keys):
        assert part.is_contiguous()
        part.fill_(1)
    assert flat.all()


def test_a_batch_that_does_not_fit_is_refused() -> None:
    layout = RequestLayout(bucket=2, width=4, routes=1)
    flat = torch.zeros(layout.size, dtype=torch.int64)
    with pytest.raises(ValueError, match="a batch of 3 sequences of 2 does not fit 2 of 4"):
        layout.write(flat, collate(sequences([1, 2, 2]), max_length=8), [1, 2, 3])
    with pytest.raises(ValueError, match="sequences of 6 does not fit"):
        layout.write(flat, collate(sequences([6]), max_length=8), [1])
    with pytest.raises(ValueError, match="keys: 2 were given for 1 sequences"):
        layout.write(flat, collate(sequences([2]), max_length=8), [1, 2])


def test_few_sizes_of_searches_are_captured() -> None:
    assert search_sizes(3_706, [None, np.arange(70)], 100) == (128, 128)
    assert search_sizes(3_706, [None], 3_000) == (64, 3_706)
    for top_k in (0, 3_707):
        with pytest.raises(ValueError, match=rf"top_k must be in 1..3706, the number of items, got {top_k}"):
            search_sizes(3_706, [], top_k)
    with pytest.raises(ValueError, match="exclude has 20000 items for a request"):
        search_sizes(10**6, [np.arange(20_000)], 10)


@pytest.mark.parametrize("num_excluded", [0, 10, 299, 300])
def test_the_search_always_gives_what_is_left(num_excluded: int) -> None:
    choice = torch.Generator().manual_seed(1)
    table = torch.randn(301, 8, generator=choice)
    user = torch.randn(2, 1, 8, generator=choice)
    out = torch.randperm(300, generator=choice)[:num_excluded] + 1
    exclude = torch.zeros(2, 512, dtype=torch.int64)
    exclude[1, :num_excluded] = out
    scores, items = masked_top_k(user, table, exclude, 40)
    left = min(40, 300 - num_excluded)
    assert len(set(items[1, :left].tolist()) - {0, *out.tolist()}) == left
    assert (items[1, left:] == 0).all()
    assert (scores[1, left:] == -torch.inf).all()
    expected = (table[items[1, :left]] @ user[1, 0]).sort(descending=True).values
    assert torch.allclose(scores[1, :left], expected, rtol=1e-5)
    assert (items[0] > 0).all()


def test_padding_is_never_found() -> None:
    table = torch.ones(5, 4)
    table[0] = 9
    _, items = masked_top_k(torch.ones(1, 1, 4), table, torch.tensor([[3]]), 4)
    assert sorted(items[0].tolist()) == [0, 1, 2, 4]
    scores, _ = masked_top_k(torch.ones(1, 1, 4), table, torch.tensor([[3]]), 4)
    assert scores[0].tolist() == [4, 4, 4, -torch.inf], "0 stands for none"


def test_a_score_that_is_no_number_is_the_worst_there_is() -> None:
    table = torch.ones(5, 4)
    table[2] = torch.nan
    scores, items = masked_top_k(torch.ones(1, 1, 4), table, torch.zeros(1, 1, dtype=torch.int64), 4)
    assert items[0, -1] == 2
    assert scores.isfinite().all()
