"""The nightly build: new logs in, a gated bundle out, whatever interrupts it.

The bundle that is served is the state: model, vocabulary, row order and what is known of each item come
from it. Each stage of a run ends with one rename or one record in the work folder and is not repeated; the
store sees a complete bundle or nothing, and its pointer moves last.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from index_builder.bundle import Bundle, load_bundle
from index_builder.bundle_files import MANIFEST, read_manifest
from index_builder.fold_in import fold
from index_builder.gate_limits import GateLimits
from index_builder.gates import gate_bundle, refused, seal_with_checks
from index_builder.log_summary import HOUR_S, of_newest_day
from index_builder.nightly_candidate import Watcher, make_candidate
from index_builder.nightly_inputs import Night, NightSettings, moment_of, read_night
from index_builder.nightly_run import Run, key_of
from index_builder.publish import Store
from index_builder.quality import Check, QualityError
from index_builder.retention import Retention, prune
from model.data.dataset import EvaluationSet
from model.data.interactions import Interactions


class Gates(Protocol):
    """Who judges a candidate: `gates.gate_bundle`."""

    def __call__(
        self,
        url: str,
        current: Bundle | None,
        newest_day: EvaluationSet | None,
        limits: GateLimits,
        *,
        now: int | None,
    ) -> list[Check]:
        """Every gate's check of the bundle at `url`."""


def run_night(
    settings: NightSettings,
    store: Store,
    work: Path,
    *,
    read: Callable[[], Interactions],
    watcher: Watcher,
    gates: Gates = gate_bundle,
) -> dict[str, Any]:
    """One night, under the builder's lock; returns its summary, whose `outcome` is one of

    published; nothing_new: the current bundle (or one that was rolled back) is made of these very inputs;
    refused: by a gate, the candidate stays in the work folder for --force.
    Raises ValueError for a log, option or store that cannot be used, FloatingPointError when training fails.
    """
    watcher.stage("reading")
    current_id = store.current()
    current = None
    if current_id is not None:
        current = load_bundle(store.bundle_url(current_id), keys=store.keys, milvus=store.milvus)
    night = read_night(settings, store, current, read)
    asked = {"similar": night.pending.similar, "deleted": night.pending.deleted}
    key = key_of({"inputs": night.inputs, "pending": asked, "current": current_id})
    summary: dict[str, Any] = {"run": key, "previous": current_id, "interactions": len(night.log)}
    built = _built_before(night, store, current, key, work)
    if built is not None and (built == current_id or not settings.force):
        if built == current_id:
            fold(store.url, _folded(current), settings.keeping)
            summary |= _prune(store, settings.retention, watcher)
            shutil.rmtree(work / f"run-{key}", ignore_errors=True)
        else:
            watcher.note(f"{built} was built from these inputs and is not served any more: --force serves it")
        return {**summary, "outcome": "nothing_new", "bundle": built}
    run = Run(work, key)
    candidate = run.candidate or make_candidate(night, run, watcher)
    checks = _judge(night, run, candidate, gates, watcher)
    against = [check.name for check in refused(checks)]
    summary |= {"refused_by": against, "resumed": run.resumed} | _counts(candidate, night)
    summary["checks"] = [check.record() for check in checks]
    if against and not settings.force:
        return {**summary, "outcome": "refused", "bundle": None, "candidate": str(candidate)}
    if against:
        watcher.note(f"FORCED: published although refused by {', '.join(against)}")
    watcher.stage("publishing")
    bundle_id = _in_store(store, key) or _add(store, candidate, checks, forced=bool(against))
    store.publish(bundle_id, instead_of=current_id)
    published = load_bundle(store.bundle_url(bundle_id), verify=False, milvus=store.milvus)
    fold(store.url, _folded(published), settings.keeping)
    summary |= _prune(store, settings.retention, watcher)
    run.remove()
    return {**summary, "outcome": "published", "bundle": bundle_id, "forced": bool(against)}


def _built_before(night: Night, store: Store, current: Bundle | None, key: str, work: Path) -> str | None:
    """The bundle made of these inputs, when no run is under way that has yet to publish it."""
    if current is not None and _holds(current, night):
        return current.bundle_id
    return None if (work / f"run-{key}").exists() else _in_store(store, key)


def _holds(current: Bundle, night: Night) -> bool:
    """Whether a bundle of tonight's inputs would hold nothing that the current one does not."""
    index_of, rows = current.item_index_of, current.rows
    serves_deleted = any(rows.is_served(index_of.get(item_id)) for item_id in night.pending.deleted)
    of_these = current.manifest.get("nightly", {}).get("inputs") == night.inputs
    return of_these and not night.pending.similar and not serves_deleted


def _in_store(store: Store, key: str) -> str | None:
    """The bundle of the run `key`, if it was added."""
    if not store.bundle_ids():
        return None
    for summary in store.summaries():
        if summary.manifest.get("nightly", {}).get("run") == key:
            return summary.bundle_id
    return None


def _judge(night: Night, run: Run, candidate: Path, gates: Gates, watcher: Watcher) -> list[Check]:
    """The gates' checks; asked again for other limits, or an hour later, for some look at the clock."""
    limits, now = night.settings.limits, moment_of(night.settings)
    verdict = run.recorded("verdict")
    if verdict and verdict["limits"] == dataclasses.asdict(limits) and 0 <= now - verdict["now"] < HOUR_S:
        return [Check(**check) for check in verdict["checks"]]
    watcher.stage("asking the gates")
    questions = of_newest_day(night.split.test, now=now)
    try:
        checks = gates(str(candidate), night.current, questions, limits, now=now)
    except ValueError as error:  # it cannot even be asked
        raise QualityError(f"the candidate does not answer the gates: {error}") from error
    for check in refused(checks):
        watcher.note(f"refused: {check}")
    told = [dataclasses.asdict(check) for check in checks]
    run.record("verdict", {"limits": dataclasses.asdict(limits), "now": now, "checks": told})
    return checks


def _add(store: Store, candidate: Path, checks: list[Check], *, forced: bool) -> str:
    """Seal the candidate with its verdict and let it appear in the store."""
    files = read_manifest(candidate)["files"]
    with store.staging() as staging:
        folder = staging / candidate.name
        folder.mkdir()
        for name in files:
            _link_or_copy(candidate / name, folder / name)
        shutil.copyfile(candidate / MANIFEST, folder / MANIFEST)  # never a link: it is written anew
        bundle_id = seal_with_checks(folder, checks, forced=forced)
        sealed = folder.rename(staging / bundle_id)
        if read_manifest(sealed)["files"] != files:
            raise OSError(f"the files of {candidate} changed since they were checked: run the job again")
        store.add(sealed)
    return bundle_id


def _prune(store: Store, retention: Retention | None, watcher: Watcher) -> dict[str, Any]:
    """Remove what is not to be kept; what cannot be removed tonight is no failure of the night."""
    if retention is None:
        return {}
    try:
        pruned = prune(store, **vars(retention))
    except (ValueError, OSError) as error:
        watcher.note(f"NOT PRUNED: {error}")
        return {"pruned": 0, "prune_error": " ".join(str(error).split())}
    return {"pruned": len(pruned.removed) + len(pruned.leftovers)}


def _link_or_copy(source: Path, target: Path) -> None:
    """Where work folder and store share a disk, a bundle of gigabytes is not written twice."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _folded(bundle: Bundle | None) -> Any:
    return [] if bundle is None else bundle.item_ids


def _counts(candidate: Path, night: Night) -> dict[str, int]:
    counts = read_manifest(candidate)["counts"]
    return {
        "items": counts["items"],
        "new_items": counts["vocabulary"] - night.num_known,
        "retired_items": counts["vocabulary"] - counts["items"],
        "questions": len(night.split.test),
    }
