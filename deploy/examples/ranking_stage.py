"""A ranking stage in thirty lines: recall candidates, score them with a model of yours, show the best.

python deploy/examples/ranking_stage.py http://127.0.0.1:8000 USER
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from service.client import RecallClient, RecallUnavailableError
from service.schemas import Candidate


def rank(user_id: str, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Your model goes here; this one trusts the recall score and prefers short ids among near-equals."""
    return sorted(candidates, key=lambda candidate: (-round(candidate.score, 2), len(candidate.item_id)))


def main(url: str, user_id: str) -> None:
    """Print the ten best, or say why there are none."""
    with RecallClient(url, deadline_ms=1000) as client:
        try:
            answer = client.recall(user_id, top_k=200)
        except RecallUnavailableError as error:
            sys.exit(f"{error}; show what is popular instead")
    print(f"{len(answer.candidates)} candidates from {answer.route}, bundle {answer.bundle}")
    for place, candidate in enumerate(rank(user_id, answer.candidates)[:10], start=1):
        print(f"{place:2}  {candidate.item_id}  {candidate.score:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
