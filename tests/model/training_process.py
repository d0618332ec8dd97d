"""One process of a run of training: it trains the cases named; the first one keeps the loss of every update.

usage: training_process.py OUT CASE …
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from model import sharded_table, split_loss
from model.data.dataset import leave_one_out
from model.data.interactions import Interactions
from model.ranks import ALONE, Ranks, join_ranks
from model.training import Progress, train
from model.training_settings import TrainingSettings
from tests.model.conftest import TINY, make_log

SETTINGS = TrainingSettings(
    epochs=2,
    seed=1,
    batch_size=7,
    learning_rate=1e-2,
    save_every_updates=4,
    warmup_updates=2,
    validation_users=20,
)
RANDOM = {"dropout": 0.2, "request_time_dropout": 0.3}
SAMPLED = {"max_full_softmax_items": 10, "num_negatives": 12}
CASES: dict[str, dict[str, Any]] = {
    "without_dropout": {"time_lag": False},  # some parameters are then without a gradient
    "with_dropout": {**RANDOM, "num_routes": 2, "intent_loss_weight": 0.5, "num_training_steps": 2},
    "with_sampled_softmax": {**RANDOM, **SAMPLED, "exclude_seen": True},
    "sharded_and_resumed": {**RANDOM, **SAMPLED, "intent_loss_weight": 0.5},
}


class InterruptedHereError(Exception):
    """A run was to end here."""


def uneven_log() -> Interactions:
    """30 users with 3 to 12 behaviours each, so that positions with a target are spread unevenly.

    Each pauses for a time of its own, so that no process sees every pause.
    """
    log = make_log(
        [[(7 * user + 3 * step) % 40 + 1 for step in range(3 + user % 10)] for user in range(30)],
        num_items=40,
    )
    pause = np.repeat(2 ** (np.arange(log.num_users) % 20), np.diff(log.offsets))
    first = log.timestamp[0]
    return replace(log, timestamp=first + (log.timestamp - first) // 60 * pause)


def losses_of(
    case: str, out: Path, ranks: Ranks = ALONE, *, resume: bool = False, stop_at: int | None = None
) -> list[float]:
    """Train `case`, and the loss of every update."""
    means: list[float] = []
    losses: list[float] = []

    def keep(progress: Progress) -> None:
        if progress.epoch_ended:
            means.clear()
            return
        means.append(progress.loss)  # of the epoch so far
        before = means[-2] * (len(means) - 1) if len(means) > 1 else 0.0
        losses.append(progress.loss * len(means) - before)
        if progress.update == stop_at:
            raise InterruptedHereError

    train(
        leave_one_out(uneven_log()),
        model_name="t2diff",
        model_config={**TINY, **CASES[case]},
        settings=replace(SETTINGS, shard_items="sharded" in case and ranks.count > 1),
        out=out,
        resume=resume,
        on_progress=keep,
        ranks=ranks,
    )
    return losses


def main(out: Path, *cases: str) -> None:
    """Train them one after the other."""
    split_loss.SENT_ALONE = 300  # small enough for some gradients to be sent alone
    sharded_table.ROWS_AT_ONCE = 7  # and for a table to be put together of several pieces
    with join_ranks(os.environ, "cpu") as ranks:
        for case in cases:
            losses = losses_of(case, out / case, ranks, resume="resumed" in case)
            if ranks.is_first:
                (out / f"{case}.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
