"""The nightly build: new logs in, a gated bundle out, whatever interrupts it.

The bundle that is served is the state: model, vocabulary, row order and what is known of each item come
from it. Each stage of a run ends with one rename or one record in the work folder and is not repeated; the
store sees a complete bundle or nothing, and its pointer moves last.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from index_builder.build import STAGES, check_finished, draft_bundle
from index_builder.bundle import Bundle, load_bundle
from index_builder.bundle_files import MANIFEST, read_manifest, seal
from index_builder.fold_in import Keeping, Pending, fold, pending_items
from index_builder.gate_limits import GateLimits
from index_builder.gates import gate_bundle, refused, seal_with_checks
from index_builder.item_features import read_catalogue
from index_builder.log_summary import HOUR_S, of_newest_day, summarise_log
from index_builder.nightly_run import Run, key_of
from index_builder.publish import Store
from index_builder.quality import Check, QualityError
from index_builder.retention import Retention, prune
from index_builder.retirement import RetirementRule, choose_served
from index_builder.titles import read_titles
from model.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from model.continued import same_model
from model.data.dataset import EvaluationSet, Split
from model.data.interactions import Interactions
from model.data.newest_day import newest_day_split, with_vocabulary, within
from model.training import Progress, TrainingSettings, train
from model.warm_start import Beside, WarmStart, item_tensors, items_beside, place_beside


class Watcher(Protocol):
    """Who is told how the run goes."""

    def stage(self, name: str, total: int | None = None) -> None:
        """A stage begins."""

    def step(self, name: str) -> None:
        """A step of the stage begins."""

    def trained(self, progress: Progress) -> None:
        """Training got further."""

    def note(self, text: str) -> None:
        """Something that a person should read."""


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


@dataclass(frozen=True)
class NightSettings:
    """What a run is asked to do; all of it but `force`, `keeping`, `retention` and the limits names the run.

    history_days, until: which rows of the log count   catalogue: file with items' features
    first, later: training from scratch, and going on   retention: which bundles are kept; None: all
    """

    model_name: str = "t2diff"
    model_config: dict[str, Any] = field(default_factory=dict)
    first: TrainingSettings = field(default_factory=TrainingSettings)
    later: TrainingSettings = field(default_factory=lambda: TrainingSettings(epochs=3))
    history_days: float = 30.0
    until: int | None = None
    retirement: RetirementRule = field(default_factory=RetirementRule)
    keeping: Keeping = field(default_factory=Keeping)
    retention: Retention | None = None
    catalogue: Path | None = None
    index_kind: str = "auto"
    target_overlap: float = 0.99
    from_scratch: bool = False
    force: bool = False
    limits: GateLimits = field(default_factory=GateLimits)


@dataclass(frozen=True, eq=False)
class _Night:
    """The inputs of a run, read.

    log: all rows, in tonight's numbering   num_known: items of it that the current bundle has rows for
    added: what all new items of the delta are like, those that the current bundle serves among them
    catalogue: item id -> features   titles: item id -> title
    inputs: what the log and the settings are; with what is pending and the current bundle they name the run
    """

    settings: NightSettings
    log: Interactions
    split: Split
    current: Bundle | None
    num_known: int
    pending: Pending
    added: Mapping[str, Mapping[str, float]]
    catalogue: Mapping[str, Sequence[str]] | None
    titles: Mapping[str, str]
    inputs: str


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
    current = None if current_id is None else load_bundle(store.bundle_url(current_id), keys=store.keys)
    night = _read_night(settings, store, current, read)
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
    candidate = run.candidate or _make_candidate(night, run, watcher)
    checks = _judge(night, run, candidate, gates, watcher)
    against = [check.name for check in refused(checks)]
    summary |= {"refused_by": against, "resumed": run.resumed} | _counts(candidate, night)
    if against and not settings.force:
        return {**summary, "outcome": "refused", "bundle": None, "candidate": str(candidate)}
    if against:
        watcher.note(f"FORCED: published although refused by {', '.join(against)}")
    watcher.stage("publishing")
    bundle_id = _in_store(store, key) or _add(store, candidate, checks, forced=bool(against))
    store.publish(bundle_id, instead_of=current_id)
    published = load_bundle(store.bundle_url(bundle_id), verify=False)
    fold(store.url, _folded(published), settings.keeping)
    summary |= _prune(store, settings.retention, watcher)
    run.remove()
    return {**summary, "outcome": "published", "bundle": bundle_id, "forced": bool(against)}


# --- inputs -------------------------------------------------------------------------------------


def _read_night(
    settings: NightSettings, store: Store, current: Bundle | None, read: Callable[[], Interactions]
) -> _Night:
    catalogue, titles, features = _read_catalogue(settings.catalogue)
    log = within(read(), until=settings.until, days=settings.history_days)
    inputs = key_of({"log": log.fingerprint, "settings": _naming(settings), **features})
    known = None if settings.from_scratch else current
    held = pending_items(store.url, settings.keeping)
    pending = _of_effect(held, current, known, log)
    log = with_vocabulary(
        log,
        known.vocabulary if known else [],
        known.item_index_of if known else {},
        added=list(pending.similar),
    )
    num_known = len(known.vocabulary) if known else 0
    split = newest_day_split(log, num_known=num_known)
    return _Night(settings, log, split, current, num_known, pending, held.similar, catalogue, titles, inputs)


def _read_catalogue(
    path: Path | None,
) -> tuple[Mapping[str, Sequence[str]] | None, Mapping[str, str], dict[str, str]]:
    """Features, titles, and what of them names the run. Raises ValueError when the file cannot be used."""
    if path is None:
        return None, {}, {}
    catalogue = read_catalogue(path)
    return catalogue, read_titles(path), {"catalogue": hashlib.sha256(path.read_bytes()).hexdigest()}


def _naming(settings: NightSettings) -> dict[str, Any]:
    """The settings that decide what is built, not how fast, nor whether it is published."""
    asked = dataclasses.asdict(settings)
    for name in ("force", "limits", "until", "keeping", "retention", "catalogue"):
        del asked[name]
    for training in ("first", "later"):
        for name in ("device", "num_threads", "save_every_updates"):
            del asked[training][name]
    return asked


def _of_effect(held: Pending, current: Bundle | None, known: Bundle | None, log: Interactions) -> Pending:
    """Without the additions that the current bundle serves, and those that have no place tonight.

    Those stay in the delta: nothing that they are said to be like has a row. All deletions stay, for they
    must hold tonight too.   known: the bundle whose rows go on
    """
    with_rows = set(log.item_ids) | (known.item_index_of.keys() if known else set())
    similar = {
        item_id: likes
        for item_id, likes in held.similar.items()
        if not (current and current.rows.is_served(current.item_index_of.get(item_id)))
        and (item_id in with_rows or not with_rows.isdisjoint(likes))
    }
    return dataclasses.replace(held, similar=similar)


def _built_before(night: _Night, store: Store, current: Bundle | None, key: str, work: Path) -> str | None:
    """The bundle made of these inputs, when no run is under way that has yet to publish it."""
    if current is not None and _holds(current, night):
        return current.bundle_id
    return None if (work / f"run-{key}").exists() else _in_store(store, key)


def _holds(current: Bundle, night: _Night) -> bool:
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


# --- stages -------------------------------------------------------------------------------------


def _make_candidate(night: _Night, run: Run, watcher: Watcher) -> Path:
    """Train, then draft and seal a bundle in the work folder."""
    settings, current = night.settings, night.current
    start = _warm_start(night, watcher)
    watcher.stage("training")
    train(
        night.split,
        model_name=settings.model_name,
        model_config=settings.model_config,
        settings=settings.later if start else settings.first,
        out=run.training,
        resume=run.training.exists(),
        on_progress=watcher.trained,
        warm_start=start,
    )
    watcher.stage("building", total=len(STAGES))
    rows = choose_served(
        night.log,
        current.rows if current and night.num_known else None,
        night.num_known,
        pending=night.pending,
        rule=settings.retirement,
    )
    checkpoint = _trained(run, settings)
    untrained = np.bincount(night.split.train.item_index, minlength=night.log.num_items + 1)[1:] == 0
    place_beside(
        checkpoint.model,
        _beside(night, untrained),
        item_tensors(settings.model_name, settings.model_config),
    )
    try:
        draft = draft_bundle(
            checkpoint,
            rows=rows,
            index_kind=settings.index_kind,
            device=settings.first.device,
            target_overlap=settings.target_overlap,
            catalogue=night.catalogue,
            titles=night.titles,
            report=watcher.step,
        )
        watcher.step(STAGES[4])
        folder = run.new_candidate()
        draft.write(folder)
        draft.manifest["data"] = summarise_log(night.log, now=_now(settings))
        draft.manifest["nightly"] = {
            "run": run.key,
            "inputs": night.inputs,
            "continued_from": current.bundle_id if current and start else None,
            "known_items": night.num_known,
            "until": settings.until,
        }
        bundle_id = seal(folder, draft.manifest)
        named = folder.rename(folder.parent / bundle_id)
        watcher.step(STAGES[5])
        check_finished(named)
    except ValueError as error:  # what training left cannot be served at all: nothing to force
        raise QualityError(str(error)) from error
    return run.keep_candidate(named)


def _trained(run: Run, settings: NightSettings) -> Checkpoint:
    """What training left; where a disk damaged it, the next run trains anew."""
    try:
        return load_checkpoint(run.training, settings.first.device)
    except CheckpointError as error:
        shutil.rmtree(run.training)
        raise OSError(f"what was trained cannot be read, run the job again to train anew: {error}") from error


def _warm_start(night: _Night, watcher: Watcher) -> WarmStart | None:
    """The current bundle's model, where tonight's is to be the same."""
    current, settings = night.current, night.settings
    if current is None or settings.from_scratch:
        return None
    spec = current.manifest["model"]
    if not same_model(spec["name"], spec["config"], settings.model_name, settings.model_config):
        watcher.note(
            f"{current.bundle_id} holds a {spec['name']} of other settings than asked for: its items keep "
            "their rows, the model is trained from scratch"
        )
        return None
    return WarmStart(
        source=current.bundle_id,
        item_ids=current.vocabulary,
        weights=current.model.state_dict(),
        beside=_beside(night, np.arange(night.log.num_items) >= night.num_known),
    )


def _beside(night: _Night, is_new: np.ndarray) -> Beside:
    """What new items were consumed beside, or are said to be in the delta.   is_new: (V,) bool"""
    beside = items_beside(night.log, is_new)
    index_of = {item_id: index for index, item_id in enumerate(night.log.item_ids, start=1)}
    told = [
        (index_of[item_id], index_of[other], weight)
        for item_id, similar in night.added.items()
        for other, weight in similar.items()
        if item_id in index_of and is_new[index_of[item_id] - 1]
        if other in index_of and not is_new[index_of[other] - 1]
    ]
    if not told:
        return beside
    new, known, count = np.array(told, dtype=np.float64).reshape(-1, 3).T
    return Beside(
        np.concatenate([beside.new, new.astype(np.int64)]),
        np.concatenate([beside.known, known.astype(np.int64)]),
        np.concatenate([beside.count, count]),
    )


def _judge(night: _Night, run: Run, candidate: Path, gates: Gates, watcher: Watcher) -> list[Check]:
    """The gates' checks; asked again for other limits, or an hour later, for some look at the clock."""
    limits, now = night.settings.limits, _now(night.settings)
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


def _now(settings: NightSettings) -> int:
    """The moment of the night: the clock's, or that of a day gone by which is built again."""
    clock = int(time.time())
    return clock if settings.until is None else min(clock, settings.until)


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


def _counts(candidate: Path, night: _Night) -> dict[str, int]:
    counts = read_manifest(candidate)["counts"]
    return {
        "items": counts["items"],
        "new_items": counts["vocabulary"] - night.num_known,
        "retired_items": counts["vocabulary"] - counts["items"],
        "questions": len(night.split.test),
    }
