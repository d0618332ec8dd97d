"""A build holds no second copy of what grows with the catalogue, and computes what it must in blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from index_builder import embed_items
from index_builder.build_benchmark import BuildCost, Stage, measure_builds
from index_builder.build_report import render
from model.registry import build_model

DIM = 128
SIZES = (70_000, 210_000)  # both above the rows of a block


def test_anonymous_memory_of_a_build_grows_by_far_less_than_the_embeddings(tmp_path):
    small, large = measure_builds(SIZES, ["flat"], tmp_path, dim=DIM)
    assert (small.num_items, large.num_items) == SIZES
    assert list(tmp_path.iterdir()) == []
    more_embeddings = (SIZES[1] - SIZES[0]) * DIM * 4
    assert large.index_bytes - small.index_bytes == more_embeddings
    assert large.anonymous_bytes - small.anonymous_bytes < 0.5 * more_embeddings
    assert large.peak_bytes >= large.anonymous_bytes
    assert large.peak_bytes - small.peak_bytes < 2.5 * more_embeddings  # mapped: the checkpoint, the bundle
    assert [stage.name for stage in large.stages][:2] == ["reading the checkpoint", "embedding items"]


@pytest.mark.parametrize("name", ["dat", "stosa"])
def test_a_computed_item_tower_is_embedded_in_blocks(name, monkeypatch):
    monkeypatch.setattr(embed_items, "_BLOCK_ROWS", 7)
    model = build_model(name, {}, 40).eval()
    asked = []
    rows = model.item_embedding_rows
    monkeypatch.setattr(model, "item_embedding_rows", lambda a, b: asked.append((a, b)) or rows(a, b))
    embeddings = embed_items.embed_items(model)
    assert max(stop - start for start, stop in asked) == 7
    with torch.inference_mode():
        np.testing.assert_allclose(embeddings, rows(0, 40).numpy(), atol=1e-6)
    assert isinstance(embeddings.base, np.memmap)


def test_a_table_is_not_copied():
    model = build_model("t2diff", {"embedding_dim": 8}, 40).eval()
    embeddings = embed_items.embed_items(model)
    assert np.shares_memory(embeddings, model.get_parameter("item_table.weight").detach().numpy())


def test_the_report_says_what_held_and_what_did_not():
    stages = [Stage("writing", 2.0, 1.0, 2**30)]
    costs = [
        BuildCost(1_000, "flat", 1.0, 2**30, 2**30, 3 * 2**30, 2**30, stages),
        BuildCost(10_000, "flat", 1.0, 2**30, 2**30, 6 * 2**30, 2**31, [Stage("writing", 30.0, 20.0, 2**31)]),
    ]
    text = render(costs, dim=64, load=3.0)
    assert "- 1,000 items, `flat`: 2.00 GiB over the index, within 4 GiB" in text
    assert "- 10,000 items, `flat`: 5.00 GiB over the index, NOT within 4 GiB" in text
    assert "- `flat`, 10 × the items: 2.0 × peak memory, 2.0 × anonymous memory, 20.0 × CPU seconds" in text
    assert "load 3.0" in text
