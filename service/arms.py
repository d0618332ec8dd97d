"""The arms of a running experiment: which engine answers whom, and which comparisons follow.

Belongs to the event loop. A request takes its arm's engine once and keeps it; a swap replaces the
references of one arm, or of all that name the same bundle, and touches nothing under way.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from service.arm_metrics import ArmFamilies, ArmMetrics
from service.comparisons import Comparison
from service.engine import Engine
from service.errors import InvalidHeaderError, shorten
from service.experiments import CURRENT, ArmSettings, Experiment, Router


class Arm:
    """One arm with the engine that answers for it now."""

    def __init__(self, settings: ArmSettings, engine: Engine, metrics: ArmMetrics) -> None:
        self.settings = settings
        self.engine = engine
        self.metrics = metrics


class Taken(NamedTuple):
    """What a request keeps to its end: an arm, the engine that it had then, and how it came by it."""

    arms: Arms
    arm: Arm
    engine: Engine
    by: str  # share or header


class Arms:
    """engines: bundle as the settings name it -> what answers for it; arms that name one bundle share it."""

    def __init__(
        self,
        experiment: Experiment,
        engines: Mapping[str, Engine],
        families: ArmFamilies,
        *,
        chance: random.Random | None = None,
    ) -> None:
        """chance: decides which requests are compared"""
        self.experiment = experiment
        self._router = Router(experiment)
        self._families = families
        self._chance = chance or random.Random()
        self._arms = {
            arm.name: Arm(arm, engines[arm.bundle], ArmMetrics(families, experiment.name, arm.name))
            for arm in experiment.arms
        }
        self.control = self._arms[experiment.arms[0].name]
        self._shadows = [arm for arm in self._arms.values() if arm.settings.shadow]
        self._show()

    def take(self, user_id: str, header: bytes | None) -> Taken:
        """The arm of `user_id`, or the one that X-Experiment-Arm names. Raises InvalidHeaderError."""
        if header is None:
            arm, by = self._arms[self._router.arm_of(user_id)], "share"
        else:
            arm, by = self._named(header), "header"
        return Taken(self, arm, arm.engine, by)

    def comparisons(self, arm: Arm) -> list[Comparison]:
        """Drawn anew for each request that `arm`'s model has answered."""
        if arm is self.control:
            return [
                Comparison(shadow.engine, shadow.metrics, asks_control=False)
                for shadow in self._shadows
                if self._chance.random() * 100 < shadow.settings.share
            ]
        if self._chance.random() * 100 < self.experiment.compared:
            return [Comparison(self.control.engine, arm.metrics, asks_control=True)]
        return []

    def swap_current(self, engine: Engine) -> None:
        """Let `engine` answer from now on for every arm that follows the store's pointer."""
        for arm in self._arms.values():
            if arm.settings.bundle == CURRENT:
                arm.engine = engine
        self._show()

    def replace(self, served: Engine, engine: Engine) -> None:
        """Let `engine` answer for every arm for which `served` does now."""
        for arm in self._arms.values():
            if arm.engine is served:
                arm.engine = engine

    def engines(self) -> Collection[Engine]:
        """Those in use, each once."""
        return {id(arm.engine): arm.engine for arm in self._arms.values()}.values()

    def document(self) -> dict[str, Any]:
        """The body of `schemas.ExperimentInfo`."""
        arms: Sequence[dict[str, Any]] = [
            {
                "name": arm.settings.name,
                "bundle": arm.engine.bundle.bundle_id,
                "follows_current": arm.settings.bundle == CURRENT,
                "share": arm.settings.share,
                "shadow": arm.settings.shadow,
                "model": arm.engine.bundle.model_name,
                "tower_engine": arm.engine.tower.name,
            }
            for arm in self._arms.values()
        ]
        return {"name": self.experiment.name, "arms": arms}

    def _named(self, header: bytes) -> Arm:
        name = header.decode("latin-1")
        arm = self._arms.get(name)
        if arm is None or arm.settings.shadow:
            known = ", ".join(arm.name for arm in self.experiment.answering)
            what = "is a shadow arm, which never answers" if arm else "is no arm of the experiment"
            raise InvalidHeaderError(f"X-Experiment-Arm: {shorten(name)} {what}; send one of {known}")
        return arm

    def _show(self) -> None:
        shown = [(name, arm.engine.bundle.bundle_id, arm.settings.shadow) for name, arm in self._arms.items()]
        self._families.show(self.experiment.name, shown)
