"""Whether an answer is wholly of the bundle that it names: no item in common, and scores known ahead."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from loadtest.errors import LoadtestError
from loadtest.generator import user_id
from loadtest.seeding import Behaviours

PREFIXES = ("left", "right")
"""Of the item ids of the two bundles."""

_TOLERANCE = 0.01  # of the largest score: who shares a batch moves a bfloat16 score by less
_HISTORY = 40
_FIRST_TIME, _GAP_S = 1_700_000_000, 3_600


@dataclass(frozen=True)
class Expected:
    """Judges answers in the generator's process.

    prefixes: bundle -> the prefix of its item ids   scores: (bundle, user id) -> its scores, best first
    """

    prefixes: dict[str, str]
    scores: dict[tuple[str, str], list[float]]

    def __call__(self, answer: dict[str, Any]) -> bool:
        """Whether items and scores are those of the bundle that the answer names."""
        bundle, candidates = answer["bundle"], answer["candidates"]
        known = self.scores.get((bundle, answer["user_id"]))
        if known is None or len(candidates) != len(known):
            return False
        if not all(candidate["item_id"].startswith(f"{self.prefixes[bundle]}-") for candidate in candidates):
            return False
        if answer["degraded"]:  # popular items: no scores of the model to compare
            return True
        scores = [candidate["score"] for candidate in candidates]
        return bool(np.allclose(scores, known, rtol=0, atol=_TOLERANCE * max(map(abs, known))))


def shared_histories(num_users: int, num_items: int) -> Iterator[Behaviours]:
    """Every user has consumed items of both catalogues: each bundle knows its own half of them."""
    rng = np.random.default_rng(0)
    for _ in range(num_users):
        items = rng.integers(num_items, size=_HISTORY).tolist()
        yield [
            (f"{PREFIXES[place % 2]}-{item}", _FIRST_TIME + _GAP_S * place)
            for place, item in enumerate(items)
        ]


def quiet_scores(url: str, bundle: str, *, num_users: int, top_k: int) -> dict[tuple[str, str], list[float]]:
    """(bundle, user id) -> the scores of that answer, asked one at a time while `bundle` is served."""
    scores = {}
    for number in range(1, num_users + 1):
        user = user_id(number)
        answer = _recall(url, user, top_k)
        if (answer["bundle"], answer["route"]) != (bundle, "t2diff"):
            raise LoadtestError(f"{user} should be answered by {bundle}, got {answer}")
        scores[bundle, user] = [candidate["score"] for candidate in answer["candidates"]]
    return scores


def _recall(url: str, user: str, top_k: int) -> dict[str, Any]:
    body = json.dumps({"user_id": user, "top_k": top_k}).encode()
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(
        urllib.request.Request(f"{url}/recall", body, headers), timeout=30
    ) as response:
        answer: dict[str, Any] = json.loads(response.read())
    return answer
