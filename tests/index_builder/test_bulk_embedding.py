"""Items embedded in blocks by workers that know only the checkpoint: the same bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from index_builder import embed_items as embedding
from index_builder.bulk_embedding import embed_items_on
from index_builder.embed_items import embed_items
from model.checkpoint import save_checkpoint
from model.registry import build_model
from tests.model.bulk.one_process import OneProcess


@pytest.mark.parametrize("name", ["t2diff", "dat", "stosa"])
def test_blocks_of_items_make_the_embeddings_of_one_machine(make_checkpoint, monkeypatch, tmp_path, name):
    monkeypatch.setattr(embedding, "_BLOCK_ROWS", 7)
    checkpoint = make_checkpoint()
    if name != "t2diff":
        config = {"embedding_dim": 8, "max_length": 6}
        model = build_model(name, config, checkpoint.model.num_items).eval()
        checkpoint = replace(checkpoint, model=model, model_name=name, model_config=config)
    save_checkpoint(tmp_path / "checkpoint", checkpoint)
    done: list[int] = []
    apart = embed_items_on(OneProcess(), tmp_path / "checkpoint", checkpoint.model, on_block=done.append)
    assert apart.tobytes() == embed_items(checkpoint.model).tobytes()
    assert done[:2] == [7, 14]
    assert done[-1] == checkpoint.model.num_items
