"""One answer, on its way from what made it to the wire."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from service.candidate_list import CandidateList
from service.trace import Timings

POPULAR = "popular"
"""What answered when the model did not; else the model's name is the route."""


@dataclass(slots=True)
class Recalled:
    """One answer. timings: stage -> seconds; tower and search are those of the whole batch.

    experiment, arm: None when no experiment runs   afterwards: to be called once the answer was sent
    """

    user_id: str
    bundle: str
    route: str
    candidates: CandidateList
    degraded: bool = False
    reason: str | None = None
    shortfall: str | None = None
    timings: Timings = field(default_factory=Timings)
    batch_size: int | None = None
    experiment: str | None = None
    arm: str | None = None
    afterwards: Callable[[], None] | None = None

    @property
    def fallback(self) -> str | None:
        """Why the popular items answered; None when the model did."""
        return self.reason if self.route == POPULAR else None

    def document(self, request_id: str) -> dict[str, Any]:
        """The body of `schemas.RecallAnswer`."""
        document: dict[str, Any] = {
            "request_id": request_id,
            "user_id": self.user_id,
            "bundle": self.bundle,
            "route": self.route,
            "degraded": self.degraded,
            "candidates": self.candidates.document(),
        }
        if self.reason is not None:
            document["reason"] = self.reason
        if self.shortfall is not None:
            document["shortfall"] = self.shortfall
        if self.arm is not None:
            document["experiment"] = self.experiment
            document["arm"] = self.arm
        return document
