"""The checks that the baselines' configurations have in common; every message names field and value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def check_choice(config: Any, name: str, choices: Sequence[str]) -> None:
    """Raises ValueError unless the field is one of `choices`."""
    if getattr(config, name) not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(config, name)!r}")


def check_at_least(config: Any, least: float, names: Sequence[str]) -> None:
    """Raises ValueError unless each field is `least` or more."""
    for name in names:
        if not getattr(config, name) >= least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(config, name)}")


def check_share(config: Any, names: Sequence[str]) -> None:
    """Raises ValueError unless each field is in [0, 1)."""
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} must be in [0, 1), got {getattr(config, name)}")


def check_heads(config: Any) -> None:
    """Raises ValueError unless the embedding splits evenly over the heads."""
    if config.embedding_dim % config.num_heads:
        raise ValueError(
            f"embedding_dim must be a multiple of num_heads ({config.num_heads}), got {config.embedding_dim}"
        )
