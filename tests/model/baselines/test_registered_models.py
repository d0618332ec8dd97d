from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from index_builder.build import build_bundle
from index_builder.bundle import load_bundle
from index_builder.candidates import recall_sequences
from index_builder.publish import Store
from model.checkpoint import load_checkpoint
from model.counted import CountedTower
from model.data.dataset import leave_one_out
from model.data.interactions import Interactions
from model.registry import MODELS, build_model
from model.training import train
from model.training_settings import TrainingSettings

TRAINED = [name for name in MODELS if not isinstance(build_model(name, {}, 5), CountedTower)]


@pytest.mark.parametrize("name", TRAINED)
def test_every_trained_model_goes_from_log_to_bundle(
    cyclic_log: Interactions, tmp_path: Path, name: str
) -> None:
    """With its default settings, through the trainer, the checkpoint, the index and the service's recall."""
    split = leave_one_out(cyclic_log)
    settings = TrainingSettings(epochs=1, batch_size=16, learning_rate=1e-3)
    train(split, model_name=name, model_config={}, settings=settings, out=tmp_path / "run")
    checkpoint = load_checkpoint(tmp_path / "run")
    store = Store(str(tmp_path / "store"))
    bundle = load_bundle(tmp_path / "store" / build_bundle(checkpoint, store))
    with torch.inference_mode():
        embeddings = checkpoint.model.item_embeddings().numpy()
    assert embeddings.shape == (45, checkpoint.model.embedding_dim)
    np.testing.assert_allclose(bundle.item_embeddings, embeddings, atol=1e-6)
    sequences = [cyclic_log.sequence(user) for user in range(3)]
    answer = recall_sequences(bundle.model, bundle.index, sequences, [1, 2, 3], top_k=45)
    assert all(sorted(row) == list(range(1, 46)) for row in answer.item_index.tolist())
