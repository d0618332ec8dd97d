from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from model.batch import Sequence
from model.checkpoint import Checkpoint, CheckpointError, load_checkpoint, map_checkpoint, save_checkpoint
from model.registry import build_model
from tests.model.conftest import TINY


def _checkpoint() -> Checkpoint:
    return Checkpoint(
        model=build_model("t2diff", TINY, 3),
        model_name="t2diff",
        model_config=dict(TINY),
        item_ids=["a", "ß", "日本"],
        popular=np.array([2, 1], dtype=np.int32),
        canary=[Sequence(np.array([1, 2]), np.array([10, 20]), 30)],
        metrics={"validation/recall_at_20": 0.5},
        dataset_id="abc",
        seed=7,
    )


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    saved = _checkpoint()
    save_checkpoint(tmp_path / "run" / "checkpoint", saved)
    for path in (tmp_path / "run" / "checkpoint", tmp_path / "run"):
        loaded = load_checkpoint(path)
        assert loaded.item_ids == saved.item_ids
        assert loaded.popular.tolist() == [2, 1]
        assert loaded.canary[0].timestamp.tolist() == [10, 20]
        assert loaded.canary[0].request_time == 30
        assert loaded.metrics == saved.metrics
        assert not loaded.model.training
        state = saved.model.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in loaded.model.state_dict().items())


def test_saving_again_replaces_the_whole_folder(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", _checkpoint())
    (tmp_path / "c" / "stale").write_text("x")
    save_checkpoint(tmp_path / "c", _checkpoint())
    assert sorted(file.name for file in (tmp_path / "c").iterdir()) == [
        "item_ids.parquet",
        "manifest.json",
        "model.safetensors",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["c"]  # nothing is left beside it


def test_missing_and_damaged_checkpoints_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*train one first"):
        load_checkpoint(tmp_path / "nothing")
    for name in ("model.safetensors", "item_ids.parquet", "manifest.json"):
        save_checkpoint(tmp_path / name, _checkpoint())
        data = (tmp_path / name / name).read_bytes()
        (tmp_path / name / name).write_bytes(data[: len(data) // 2])
        for read in (load_checkpoint, map_checkpoint):
            with pytest.raises(CheckpointError, match="is damaged"):
                read(tmp_path / name)


def test_a_kill_between_the_two_moves_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old folder stands aside and the new one is not there yet: reading brings the old one back."""
    save_checkpoint(tmp_path / "run" / "checkpoint", _checkpoint())
    moves: list[Path] = []

    def die_at_the_second_move(source: Path, target: Path) -> None:
        moves.append(target)
        if len(moves) == 2:
            raise SystemExit
        os.rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr("model.checkpoint.os.replace", die_at_the_second_move)
        with pytest.raises(SystemExit):
            save_checkpoint(tmp_path / "run" / "checkpoint", _checkpoint())
    assert not (tmp_path / "run" / "checkpoint").exists()
    assert load_checkpoint(tmp_path / "run").seed == 7
    assert (tmp_path / "run" / "checkpoint").is_dir()


def test_a_mapped_checkpoint_is_the_same_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", _checkpoint())
    loaded, mapped = load_checkpoint(tmp_path / "c"), map_checkpoint(tmp_path / "c")
    for name, weight in loaded.model.state_dict().items():
        assert torch.equal(mapped.model.state_dict()[name], weight), name
    assert mapped.item_ids == loaded.item_ids
    assert list(mapped.item_ids) == loaded.item_ids
    last = len(loaded.item_ids) - 1
    assert mapped.item_ids[last] == mapped.item_ids[-1] == loaded.item_ids[-1]
    for part in (slice(1, 3), slice(3, 1), slice(None, None, 2), slice(None, None, -1), slice(0, 10**6)):
        assert mapped.item_ids[part] == loaded.item_ids[part]
    save_checkpoint(tmp_path / "again", mapped)
    assert load_checkpoint(tmp_path / "again").item_ids == loaded.item_ids
    with pytest.raises(IndexError):
        mapped.item_ids[last + 1]
    assert not mapped.model.training
