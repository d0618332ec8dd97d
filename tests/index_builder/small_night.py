"""A night small enough for a test: 60 users, 40 items, a tiny model; two of them in a row."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from index_builder.bundle import load_bundle
from index_builder.gate_limits import GateLimits
from index_builder.gates import run_gates
from index_builder.nightly import run_night
from index_builder.nightly_inputs import NightSettings
from index_builder.publish import Store
from index_builder.quality import Check
from model.data.event_log import write_event_log
from model.data.interactions import Interactions
from model.data.reader import read_interactions
from model.data.synthetic import generate_drift_log
from model.training import Progress, TrainingSettings
from tests.model.conftest import TINY

NOW = 1_790_000_000
DAY = 86_400
TRAINING = TrainingSettings(epochs=2, batch_size=16, learning_rate=1e-2, save_every_updates=5, patience=9)
_ANY = float("inf")
FREE = {
    **dict.fromkeys(("max_recall_drop", "max_mrr_drop", "max_behind_popular"), _ANY),
    **dict.fromkeys(("max_popular_share", "max_popular_rise", "max_norm_ratio"), _ANY),
    **dict.fromkeys(("max_items_ratio", "max_contract_changes", "max_age_hours"), _ANY),
    **dict.fromkeys(("max_backwards_hours", "max_day_ratio", "max_log_ratio"), _ANY),
    **dict.fromkeys(("max_top_item_share", "max_top_user_share", "max_top_time_share"), _ANY),
    **dict.fromkeys(("min_answered_share", "min_known_target_share", "min_coverage"), 0.0),
    **dict.fromkeys(("min_coverage_ratio", "min_items_ratio", "min_kept_share"), 0.0),
    **dict.fromkeys(("min_day_ratio", "min_log_ratio", "min_spread"), 0.0),
    "min_similarity": -_ANY,
    "min_questions": 1.0,
}
"""So few users and so old a log show nothing: what is damaged or ahead of its time is refused."""
SETTINGS = NightSettings(
    model_config=TINY, first=TRAINING, later=TRAINING, history_days=400.0, limits=GateLimits(**FREE)
)
EARLIER, LATER = dataclasses.replace(SETTINGS, until=NOW - DAY), SETTINGS
"""The same log read a day apart: the second night has a day more of it."""

FLAGS = [
    *("--epochs", "2", "--later-epochs", "2", "--batch-size", "16", "--learning-rate", "1e-2"),
    *("--save-every", "5", "--patience", "9", "--history", "400"),
    *(
        text
        for name, value in TINY.items()
        for text in ("--set", f"{name}={list(value) if isinstance(value, tuple) else value}")
    ),
    *(text for name, value in FREE.items() for text in ("--limit", f"{name}={value}")),
]
"""SETTINGS on the command line."""


class Silent:
    """A watcher that only remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.stages: list[str] = []
        self.trained_epochs = 0

    def stage(self, name: str, total: int | None = None) -> None:
        self.stages.append(name)

    def step(self, name: str) -> None:
        pass

    def trained(self, progress: Progress) -> None:
        self.trained_epochs += progress.epoch_ended

    def note(self, text: str) -> None:
        self.notes.append(text)


def write_log(path: Path, *, seed: int = 1, now: int = NOW) -> Path:
    """The small log."""
    generate_drift_log(num_users=60, num_items=40, seed=seed, now=now).write_event_log(path)
    return path


def write_rows(path: Path, rows: list[tuple[str, str, int]]) -> Path:
    """A log of (user_id, item_id, timestamp)."""
    user, item, timestamp = zip(*rows, strict=True)
    write_event_log(
        path,
        user_id=np.array(user, dtype=object),
        item_id=np.array(item, dtype=object),
        timestamp=np.array(timestamp, dtype=np.int64),
    )
    return path


def read(*paths: Path) -> Interactions:
    return read_interactions(list(paths))


def night(settings: NightSettings, folder: Path, *logs: Path, **changed: Any) -> dict[str, Any]:
    """One night with store and work folder in `folder`, in this process."""
    watcher = changed.pop("watcher", None) or Silent()
    return run_night(
        dataclasses.replace(settings, **changed),
        Store(folder / "store"),
        folder / "work",
        read=lambda: read(*(logs or [folder / "log.csv"])),
        watcher=watcher,
        gates=gates_in_this_process,
    )


def gates_in_this_process(url: str, *asked: Any, **how: Any) -> list[Check]:
    """All gates but that of the fresh process, which takes seconds to start; the command asks it too."""
    return run_gates(load_bundle(url), *asked, **how)
