"""The gates between a night's bundle and the service: what it must show, of itself and against the last one.

All of them must hold to publish; `limits` says how far, each check says what to do. A gate that cannot be
applied (no last bundle, no times in the log) is recorded as skipped, with the reason.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from index_builder.bundle import Bundle, load_bundle
from index_builder.bundle_files import read_manifest, seal
from index_builder.fresh_process import check_in_fresh_process
from index_builder.gate_answers import ANSWER_GATES, check_answers
from index_builder.gate_embeddings import check_catalogue, check_item_embeddings, check_parts
from index_builder.gate_limits import GateLimits
from index_builder.log_summary import check_log
from index_builder.quality import Check, skip
from model.data.dataset import EvaluationSet


def run_gates(
    candidate: Bundle,
    current: Bundle | None,
    newest_day: EvaluationSet | None,
    limits: GateLimits = GateLimits(),
    *,
    candidate_url: str | None = None,
    now: int | None = None,
    data: dict[str, Any] | None = None,
) -> list[Check]:
    """Every gate's check, in the order of the README's table.

    current: the bundle served now, None before the first   newest_day: questions of the newest day that
    neither bundle was trained on (`log_summary.of_newest_day`), None without a log; items are matched by id
    candidate_url: where a fresh process finds the candidate   now: unix seconds, the clock's when None
    data: what is to be known of the log (`log_summary.summarise_log`); the candidate manifest's section
    `data` when None. The last bundle's manifest says what the log was then.
    """
    return [
        *check_in_fresh_process(candidate_url, limits),
        *_check_loaded(candidate, current, newest_day, limits, now, data),
    ]


def gate_bundle(
    url: str,
    current: Bundle | None,
    newest_day: EvaluationSet | None,
    limits: GateLimits = GateLimits(),
    *,
    now: int | None = None,
    data: dict[str, Any] | None = None,
) -> list[Check]:
    """`run_gates` for the bundle at a path or URL; what a fresh process cannot load is not loaded here."""
    first = check_in_fresh_process(url, limits)
    if first[0].refused:
        return first
    return [*first, *_check_loaded(load_bundle(url), current, newest_day, limits, now, data)]


def refused(checks: Collection[Check]) -> list[Check]:
    """The checks that forbid to publish."""
    return [check for check in checks if check.refused]


def seal_with_checks(folder: Path, checks: Collection[Check], *, forced: bool = False) -> str:
    """Write `checks` into the manifest of a sealed bundle in a staging folder; returns its new id.

    The other files stay what they are, and so do their checksums; the id follows the manifest, so the folder
    must be renamed to it.   forced: published against its refused checks, by a person's wish
    """
    manifest = read_manifest(folder)
    for key in ("format_version", "created", "files"):
        del manifest[key]
    manifest["checks"] = [check.record() for check in checks]
    if forced:
        manifest["forced"] = True
    return seal(folder, manifest)


def _check_loaded(
    candidate: Bundle,
    current: Bundle | None,
    newest_day: EvaluationSet | None,
    limits: GateLimits,
    now: int | None,
    data: dict[str, Any] | None,
) -> list[Check]:
    """Every gate but those of the fresh process."""
    data = candidate.manifest.get("data") if data is None else data
    last = current.manifest.get("data") if current else None
    checks = [
        *check_log(data, last, limits, now=int(time.time()) if now is None else now),
        *check_parts(candidate, current, limits),
        *check_catalogue(candidate, current, limits),
        *check_item_embeddings(candidate, current, limits),
    ]
    if any(check.refused and "non_finite" in check.name for check in checks):
        reason = "weights or embeddings are not finite"
        return checks + [skip(name, reason) for name in ("questions", *ANSWER_GATES)]
    return checks + check_answers(candidate, current, newest_day, limits)
