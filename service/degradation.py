"""Soft degradation: under load fewer diffusion steps, then the popular items, and back when it is calm again.

The controller looks at the pressure (`in_flight.py`: 1 is when requests are refused) each time that a request
is about to wait for the device:

- above RAISE_AT: one level up, at most one each RAISE_AFTER_S, for a change shows only after some batches;
- below LOWER_AT for LOWER_AFTER_S without a break: one level down; between the two it stays as it is;
- on the last level, a request that still finds the pressure above RAISE_AT gets the popular items instead of
  waiting; the device goes on with those that wait.

A level is a number of steps of DDIM, one for a whole batch. Off, nothing of it is built or asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from model.engines.interface import TowerEngine
from model.engines.tower_engine import build_tower_engine
from model.two_tower import TwoTower
from service.settings import ServiceSettings

STEPS = (25, 10)
"""Of level 1, 2: what each costs in Recall stands in model/PAPER.md."""
RAISE_AT = 0.5
LOWER_AT = 0.2
RAISE_AFTER_S = 0.25
LOWER_AFTER_S = 2.0
SAMPLER = "ddim"

Levels = list[tuple[int | None, TowerEngine]]
"""Per level the diffusion steps, None for as many as set, and the engine that takes them."""


class SoftDegradation:
    """`level` is changed on the event loop and read on the device thread, once a batch."""

    def __init__(
        self,
        *,
        enabled: bool,
        on_level: Callable[[int], None] = lambda level: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """on_level: gets the new level whenever it changes"""
        self.level = 0
        self._enabled = enabled
        self._on_level = on_level
        self._clock = clock
        self._changed_at = -RAISE_AFTER_S
        self._calm_since: float | None = None

    def prefers_popular(self, pressure: float) -> bool:
        """Take note of the pressure; whether this request should get the popular items."""
        if not self._enabled:
            return False
        now = self._clock()
        if pressure > RAISE_AT:
            self._calm_since = None
            if self.level == len(STEPS):
                return now - self._changed_at >= RAISE_AFTER_S
            if now - self._changed_at >= RAISE_AFTER_S:
                self._move(1, now)
        elif pressure >= LOWER_AT or self.level == 0:
            self._calm_since = None
        elif self._calm_since is None:
            self._calm_since = now
        elif now - self._calm_since >= LOWER_AFTER_S:
            self._calm_since = now
            self._move(-1, now)
        return False

    def _move(self, by: int, now: float) -> None:
        self.level += by
        self._changed_at = now
        self._on_level(self.level)


def build_levels(model: TwoTower, tower: TowerEngine, *, own_steps: int, settings: ServiceSettings) -> Levels:
    """The engine of every level; a level without fewer steps than the one before is the one before.

    own_steps: that `tower` takes, 0 for a model without diffusion, which has one level only
    """
    levels: Levels = [(None, tower)]
    for steps in STEPS if settings.soft_degradation else ():
        if steps >= own_steps:
            levels.append(levels[-1])
            continue
        quick = build_tower_engine(
            model,
            kind=settings.tower_engine,
            num_inference_steps=steps,
            sampler=SAMPLER,
            num_threads=settings.torch_threads,
        )
        levels.append((steps, quick))
    return levels
