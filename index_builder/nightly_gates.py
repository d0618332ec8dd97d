"""Where the nightly job asks its gates: may this candidate be served?

STAND-IN: there is no `index_builder/gates.py` yet; the checks of `quality` and one gate on the newest day
stand here. When it is here, `judge` becomes

    return gate_bundle(candidate_url, current, newest_day, limits)

`refused`, `read_limits`, `summarise_log` and `GateLimits` come from it too, `record` is `Check.record`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from index_builder.bundle import Bundle, load_bundle
from index_builder.candidates import recall_sequences
from index_builder.quality import Check, check_embeddings
from model.batch import Sequence
from model.data.dataset import EvaluationSet
from model.data.interactions import Interactions
from model.noise import request_key

_CUTOFF = 20
_BATCH_SIZE = 64


@dataclass(frozen=True)
class GateLimits:
    """max_recall_drop: the share of the current bundle's Recall@20 that may be lost on the newest day

    min_questions: users asked at least   max_questions: at most, evenly spread
    """

    max_recall_drop: float = 0.2
    min_questions: float = 1
    max_questions: float = 2_000


def judge(
    candidate_url: str, current: Bundle | None, newest_day: EvaluationSet, limits: GateLimits
) -> list[Check]:
    """Every gate's check of the bundle at a path or URL, against the one served now."""
    candidate = load_bundle(candidate_url)
    asked = np.unique(
        np.linspace(0, len(newest_day) - 1, min(len(newest_day), int(limits.max_questions))).astype(int)
    )
    checks = [
        *check_embeddings(candidate.item_embeddings),
        Check("newest_day_questions", len(asked), at_least=limits.min_questions),
    ]
    if len(asked):
        ours = _recall(candidate, newest_day, asked)
        checks.append(Check("newest_day_recall_at_20", ours, at_least=0.0))
        if current is not None:
            theirs = _recall(current, newest_day, asked)
            kept = ours / theirs if theirs > 0 else 1.0
            checks.append(Check("newest_day_recall_ratio", kept, at_least=1 - limits.max_recall_drop))
    return checks


def refused(checks: Collection[Check]) -> list[Check]:
    """The checks that forbid to publish."""
    return [check for check in checks if not check.passed]


def record(check: Check) -> dict[str, Any]:
    """What the manifest keeps of a check."""
    return {**asdict(check), "passed": check.passed}


def read_limits(settings: Collection[str] = ()) -> GateLimits:
    """The defaults, over them `name=value` settings. Raises ValueError for an unknown one or no number."""
    known = [field.name for field in dataclasses.fields(GateLimits)]
    values = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in known:
            raise ValueError(f"--limit: there is no gate limit {name!r}; there are {', '.join(known)}")
        try:
            values[name] = float(text)
        except ValueError:
            raise ValueError(f"--limit: {name} must be a number, got {text!r}") from None
    return GateLimits(**values)


def summarise_log(log: Interactions) -> dict[str, Any]:
    """The manifest's section `data`: what the next night compares its log with."""
    return {
        "users": log.num_users,
        "items": len(np.unique(log.item_index)),
        "interactions": len(log),
        "newest": int(log.timestamp.max()),
        "oldest": int(log.timestamp.min()),
    }


def _recall(bundle: Bundle, questions: EvaluationSet, asked: np.ndarray) -> float:
    """Recall@20 of those questions; items are matched by id, one that is not served is a miss."""
    ids = questions.interactions.item_ids
    hits = 0
    for start in range(0, len(asked), _BATCH_SIZE):
        members, targets = [], []
        for question in asked[start : start + _BATCH_SIZE].tolist():
            sequence = _translated(questions.sequence(question), ids, bundle)
            if len(sequence.item_index):
                members.append(sequence)
                targets.append(ids[int(questions.target[question]) - 1])
        if not members:
            continue
        keys = [request_key(0, f"question-{start + number}") for number in range(len(members))]
        found = recall_sequences(bundle.model, bundle.index, members, keys, top_k=_CUTOFF)
        for target, row in zip(targets, found.item_index.tolist(), strict=True):
            hits += target in [bundle.item_ids[item - 1] for item in row if item > 0]
    return hits / len(asked)


def _translated(sequence: Sequence, ids: list[str], bundle: Bundle) -> Sequence:
    """A log's sequence in the numbering of `bundle`, without what it does not know."""
    latest = slice(-bundle.model.max_length, None)
    known = bundle.item_index_of
    index = np.array([known.get(ids[item - 1], 0) for item in sequence.item_index[latest].tolist()], np.int64)
    return Sequence(index[index > 0], sequence.timestamp[latest][index > 0], sequence.request_time)
