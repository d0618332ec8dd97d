from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from loadtest.stress.forked import ForkedProcess
from model.checkpoint import load_checkpoint
from model.data.dataset import leave_one_out
from model.data.interactions import Interactions
from model.evaluation import metrics_of_ranks, rank_targets
from model.training import Progress, train
from model.training_settings import TrainingSettings, learning_rate_at
from tests import forked
from tests.model.conftest import TINY, make_log

SETTINGS = TrainingSettings(
    epochs=3, batch_size=4, learning_rate=1e-2, save_every_updates=3, warmup_updates=2
)


def _train(log: Interactions, out: Path, **given: Any) -> dict[str, float]:
    return train(
        leave_one_out(log),
        **{"model_name": "t2diff", "model_config": TINY, "settings": SETTINGS, "out": out, **given},
    )


def test_training_learns_a_certain_walk_and_leaves_its_best_checkpoint(
    cyclic_log: Interactions, tmp_path: Path
) -> None:
    settings = TrainingSettings(epochs=20, batch_size=4, learning_rate=1e-2, patience=20)
    metrics = _train(cyclic_log, tmp_path / "run", settings=settings)
    chance = 2 / 45
    assert metrics["validation/recall_at_2"] > 6 * chance
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint.item_ids == cyclic_log.item_ids
    assert checkpoint.dataset_id == leave_one_out(cyclic_log).train.fingerprint
    assert len(checkpoint.canary) == 8
    test = metrics_of_ranks(rank_targets(checkpoint.model, leave_one_out(cyclic_log).test))
    assert test["recall_at_2"] > 6 * chance


def test_a_run_killed_at_any_update_and_resumed_ends_bit_for_bit_like_an_undisturbed_one(
    cyclic_log: Interactions, tmp_path: Path
) -> None:
    _train(cyclic_log, tmp_path / "whole")

    class InterruptedHereError(Exception):
        pass

    def stop_at(update: int) -> Any:
        def on_progress(progress: Progress) -> None:
            if progress.update == update and not progress.epoch_ended:
                raise InterruptedHereError

        return on_progress

    for update in (2, 5, 10, 13):
        with pytest.raises(InterruptedHereError):
            _train(cyclic_log, tmp_path / "broken", resume=update != 2, on_progress=stop_at(update))
    _train(cyclic_log, tmp_path / "broken", resume=True)
    whole = load_file(tmp_path / "whole" / "state" / "state.safetensors")
    broken = load_file(tmp_path / "broken" / "state" / "state.safetensors")
    assert whole.keys() == broken.keys()
    assert all(np.array_equal(whole[name], broken[name]) for name in whole)


def test_a_run_survives_kill_minus_nine(tmp_path: Path) -> None:
    """A real process killed by a real signal while it trains; what is on disk resumes to the same weights."""
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from tests.model.test_training import SETTINGS, _train\n"
        "from tests.model.conftest import make_log\n"
        "torch.set_num_threads(1)\n"
        "log = make_log([[(u + s) % 20 + 1 for s in range(12)] for u in range(40)], num_items=20)\n"
        "_train(log, Path(sys.argv[1]), resume=True, on_progress=lambda p: print(p.update, flush=True))\n"
    )

    def start(out: str) -> ForkedProcess:
        return forked.start([sys.executable, script, tmp_path / out], stdout=subprocess.PIPE)

    killed = 0
    for _ in range(2):
        process = start("killed")
        assert process.stdout is not None
        for _ in range(5):
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed == 2
    for out in ("killed", "whole"):
        process = start(out)
        process.communicate()
        assert process.returncode == 0
    left = load_file(tmp_path / "killed" / "state" / "state.safetensors")
    right = load_file(tmp_path / "whole" / "state" / "state.safetensors")
    assert all(np.array_equal(left[name], right[name]) for name in right)


def test_progress_tells_loss_recall_and_how_far(cyclic_log: Interactions, tmp_path: Path) -> None:
    seen: list[Progress] = []
    _train(cyclic_log, tmp_path / "run", on_progress=seen.append)
    updates = [progress.update for progress in seen if not progress.epoch_ended]
    assert updates == list(range(1, len(updates) + 1))
    assert [progress.epoch for progress in seen if progress.epoch_ended] == [1, 2, 3]
    assert seen[0].recall_at_20 is None
    assert seen[-1].recall_at_20 is not None
    assert abs(seen[-1].num_updates - len(updates)) <= 3
    assert any((tmp_path / "run" / "tensorboard").iterdir())


def test_early_stopping_waits_for_patience(cyclic_log: Interactions, tmp_path: Path) -> None:
    settings = TrainingSettings(epochs=50, batch_size=4, learning_rate=0.0, patience=2)
    _train(cyclic_log, tmp_path / "run", settings=settings)
    state = json.loads((tmp_path / "run" / "state" / "run.json").read_text())["state"]
    assert state["best_epoch"] <= state["epoch"] - 2 < 40
    assert state["finished"]


def test_a_run_still_at_chance_is_not_stopped_early(tmp_path: Path) -> None:
    """Of 6,000 items nothing is learned without steps: patience would have ended it after two epochs."""
    walks = [[(500 * user + step) % 6_000 + 1 for step in range(5)] for user in range(12)]
    settings = TrainingSettings(epochs=5, batch_size=4, learning_rate=0.0, patience=1)
    _train(make_log(walks, num_items=6_000), tmp_path / "run", settings=settings)
    state = json.loads((tmp_path / "run" / "state" / "run.json").read_text())["state"]
    assert state["best_recall_at_20"] <= 100 / 6_000, "no longer a run at chance"
    assert state["epoch"] == 5


def test_two_runs_with_one_seed_agree_and_another_seed_differs(
    cyclic_log: Interactions, tmp_path: Path
) -> None:
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        settings = TrainingSettings(epochs=1, batch_size=4, seed=seed)
        _train(cyclic_log, tmp_path / name, settings=settings)
        weights.append(load_file(tmp_path / name / "checkpoint" / "model.safetensors")["item_table.weight"])
    assert np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


def test_an_existing_run_is_not_overwritten_nor_resumed_with_other_settings(
    cyclic_log: Interactions, tmp_path: Path
) -> None:
    _train(cyclic_log, tmp_path / "run")
    time_of_state = (tmp_path / "run" / "state" / "run.json").stat().st_mtime_ns
    with pytest.raises(ValueError, match="--resume"):
        _train(cyclic_log, tmp_path / "run")
    with pytest.raises(ValueError, match="another settings"):
        _train(cyclic_log, tmp_path / "run", resume=True, settings=TrainingSettings(epochs=9))
    assert (tmp_path / "run" / "state" / "run.json").stat().st_mtime_ns == time_of_state
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="not empty"):
        _train(cyclic_log, other)


def test_learning_rate_warms_up_and_decays() -> None:
    settings = TrainingSettings(learning_rate=1.0, warmup_updates=10)
    rates = [learning_rate_at(update, 110, settings) for update in range(110)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.5)
    assert rates[109] == pytest.approx(0.01)


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_its_last_state(
    cyclic_log: Interactions, tmp_path: Path
) -> None:
    settings = TrainingSettings(
        epochs=3, batch_size=4, learning_rate=1e30, warmup_updates=1, max_gradient_norm=1e30
    )
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        _train(cyclic_log, tmp_path / "run", settings=settings)
    assert (tmp_path / "run" / "state" / "state.safetensors").exists()
