"""Tiny recipes and runs, quick enough to train for real."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.data.dataset import Split, leave_one_out
from model.data.synthetic import generate_drift_log
from model.experiments.comparison import plan_comparison
from model.experiments.runs import Run
from model.experiments.variants import Variant
from model.training_settings import TrainingSettings
from tests.model.conftest import TINY

SASREC = {"embedding_dim": 8, "max_length": 6, "num_layers": 1, "feed_forward_hidden": 16}
OWN = {"t2diff": {"tiny": Variant(TINY)}, "sasrec": {"tiny": Variant(SASREC)}}
BASE = TrainingSettings(epochs=2, batch_size=8, save_every_updates=3)


@pytest.fixture
def split() -> Split:
    return leave_one_out(
        generate_drift_log(num_users=60, num_items=40, seed=1, now=1_700_000_000).interactions()
    )


def plan(split: Split, work: Path, *specs: str, seeds: tuple[int, ...] = (0,)) -> list[Run]:
    return plan_comparison(split, work, dict.fromkeys(specs, seeds), base=BASE, own=OWN)
