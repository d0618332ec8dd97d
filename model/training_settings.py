"""How to train: what is recorded with a checkpoint, and the learning rate that follows from it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; recorded with the checkpoint."""

    epochs: int = 20
    batch_size: int = 16  # windows
    targets_per_window: int | None = None  # None: every position of a window (dense)
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    warmup_updates: int = 100
    max_gradient_norm: float = 1.0
    patience: int = 3  # validations without a better Recall@20 before stopping, once it is above chance
    validation_users: int = 2_000
    save_every_updates: int = 200
    seed: int = 0
    device: str = "cpu"
    num_threads: int = 1
    shard_items: bool = False  # spread the item table over the processes


def learning_rate_at(update: int, num_updates: int, settings: TrainingSettings) -> float:
    """Linear warm-up, then linear decay to a hundredth."""
    warmup = min(settings.warmup_updates, max(num_updates // 10, 1))
    if update < warmup:
        return settings.learning_rate * (update + 1) / warmup
    share_left = (num_updates - update) / max(num_updates - warmup, 1)
    return settings.learning_rate * max(share_left, 0.01)
