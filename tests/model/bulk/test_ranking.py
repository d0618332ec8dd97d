"""Questions ranked in blocks get the ranks of one run, though the noise comes from one generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.bulk import ranking
from model.bulk.ranking import rank_targets_on
from model.checkpoint import save_checkpoint
from model.data.dataset import EvaluationSet, leave_one_out
from model.data.synthetic import generate_drift_log
from model.evaluation import rank_targets
from model.registry import build_model
from tests.model.bulk.one_process import OneProcess
from tests.untrained import untrained_checkpoint

NUM_ITEMS = 80


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "_BATCH_SIZE", 16)


@pytest.fixture(scope="module")
def questions() -> EvaluationSet:
    log = generate_drift_log(num_users=90, num_items=NUM_ITEMS, seed=3)
    return leave_one_out(log.interactions()).test


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    folder = tmp_path_factory.mktemp("checkpoints")
    t2diff = untrained_checkpoint(0, num_items=NUM_ITEMS)
    config = {"embedding_dim": 8, "max_length": 6}
    sasrec = build_model("sasrec", config, NUM_ITEMS).eval()
    other = untrained_checkpoint(
        0, num_items=NUM_ITEMS, model=sasrec, model_name="sasrec", model_config=config
    )
    for name, checkpoint in (("t2diff", t2diff), ("sasrec", other)):
        save_checkpoint(folder / name, checkpoint)
    return {"t2diff": (folder / "t2diff", t2diff.model), "sasrec": (folder / "sasrec", sasrec)}


@pytest.mark.parametrize("name", ["t2diff", "sasrec"])
@pytest.mark.parametrize(
    "options",
    [{}, {"mask_seen": True}, {"hide_request_time": True, "max_queries": 50, "seed": 7}],
    ids=str,
)
def test_ranks_in_blocks_equal_those_of_one_run(checkpoints, questions, name, options):
    path, model = checkpoints[name]
    together = rank_targets(model, questions, batch_size=16, **options)
    done: list[int] = []
    apart = rank_targets_on(OneProcess(), path, model, questions, on_batch=done.append, **options)
    assert apart.dtype == together.dtype
    np.testing.assert_array_equal(apart, together)
    assert len(done) > 2, "there were several blocks"
    assert done[-1] == len(together)


def test_other_noise_gives_other_ranks(checkpoints, questions):
    """So the blocks above can only agree because each has the noise of its place in the run."""
    path, model = checkpoints["t2diff"]
    first, second = (rank_targets_on(OneProcess(), path, model, questions, seed=seed) for seed in (0, 1))
    assert (first != second).any()


def test_a_node_with_another_checkpoint_is_told(checkpoints, tmp_path):
    path, _ = checkpoints["t2diff"]
    with pytest.raises(ValueError, match=r"another checkpoint at .*t2diff.*shared storage"):
        ranking.BlockRanker(path, "0" * 64, mask_seen=False, hide_request_time=False)
    with pytest.raises(ValueError, match=f"has no {tmp_path / 'gone'}.*shared storage"):
        ranking.BlockRanker(tmp_path / "gone", "0" * 64, mask_seen=False, hide_request_time=False)
