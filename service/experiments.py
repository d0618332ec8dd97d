"""An experiment: several bundles served side by side, and which user meets which of them.

Routing keeps no state. A user's place on a line from 0 to 100 is a hash of the experiment's salt and the
user's id; the arms that answer lie along that line in their order, each as long as its share. So a user
stays with an arm for as long as salt and shares stay, on every replica, and another salt is another,
independent division of the users.
"""

from __future__ import annotations

from bisect import bisect_right
from hashlib import blake2b
from itertools import accumulate
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

CURRENT = "current"
"""In place of a bundle's id: whatever the store's pointer names."""

MAX_ARMS = 20
_BITS = 53  # of the hash: as many as a float holds exactly
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
_Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


class ArmSettings(BaseModel):
    """One arm.

    share: percent of the users that it answers; of a shadow arm, percent of the control's requests that are
    also asked of it, the answers being compared and never returned
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: _Name
    bundle: str = CURRENT
    share: _Percent
    shadow: bool = False

    @field_validator("bundle")
    @classmethod
    def _one_name(cls, value: str) -> str:
        if not value or "/" in value or "\\" in value or value.startswith("."):
            raise ValueError(f"must be {CURRENT!r} or a bundle's id as t2diff-index list shows it")
        return value


class Experiment(BaseModel):
    """What the table `[experiment]` of the settings file holds; the first arm is the control.

    salt: divides the users; the experiment's name when left out
    compared: percent of the other arms' requests that the control is asked as well, for comparison
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: _Name
    salt: str | None = Field(None, min_length=1, max_length=128)
    compared: _Percent = 1.0
    arms: tuple[ArmSettings, ...]

    @model_validator(mode="after")
    def _fits_together(self) -> Experiment:
        if not 2 <= len(self.arms) <= MAX_ARMS:
            raise ValueError(f"arms: there are {len(self.arms)}; an experiment takes 2 to {MAX_ARMS}")
        names = [arm.name for arm in self.arms]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"arms: two are named {repeated[0]!r}; give each a name of its own")
        if self.arms[0].shadow:
            raise ValueError(
                f"arms: the first one, {names[0]!r}, is the control and must answer; put the shadows after it"
            )
        total = sum(arm.share for arm in self.answering)
        if abs(total - 100) > 1e-6:
            raise ValueError(
                f"arms: the shares of the arms that answer sum to {total:g}, they must sum to 100 "
                "(a shadow arm's share does not count)"
            )
        return self

    @property
    def answering(self) -> tuple[ArmSettings, ...]:
        """The arms whose answers are returned."""
        return tuple(arm for arm in self.arms if not arm.shadow)

    @property
    def bundles(self) -> dict[str, str]:
        """Each bundle that is named, and the first arm that names it."""
        named: dict[str, str] = {}
        for arm in self.arms:
            named.setdefault(arm.bundle, arm.name)
        return named


class Router:
    """Users to arms."""

    def __init__(self, experiment: Experiment) -> None:
        salt = experiment.name if experiment.salt is None else experiment.salt
        self._salted = blake2b(f"{len(salt)}:{salt}:".encode("utf-8", "surrogatepass"), digest_size=8)
        self._names = [arm.name for arm in experiment.answering]
        self._bounds = list(accumulate(arm.share for arm in experiment.answering))[:-1]

    def arm_of(self, user_id: str) -> str:
        """The name of the arm that answers `user_id`."""
        hashed = self._salted.copy()
        hashed.update(user_id.encode("utf-8", "surrogatepass"))
        place = (int.from_bytes(hashed.digest(), "little") >> (64 - _BITS)) * (100 / (1 << _BITS))
        return self._names[bisect_right(self._bounds, place)]
