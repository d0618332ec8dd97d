"""From a night's inputs to a sealed bundle in the work folder: train or go on, place, draft, check."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Protocol

import numpy as np

from index_builder.build import STAGES, check_finished, draft_bundle
from index_builder.bundle_files import seal
from index_builder.log_summary import summarise_log
from index_builder.nightly_inputs import Night, NightSettings, moment_of
from index_builder.nightly_run import Run
from index_builder.quality import QualityError
from index_builder.retirement import choose_served
from model.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from model.continued import same_model
from model.training import Progress, train
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


def make_candidate(night: Night, run: Run, watcher: Watcher) -> Path:
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
            milvus=settings.milvus,
            store_url=night.store_url,
            report=watcher.step,
        )
        watcher.step(STAGES[4])
        folder = run.new_candidate()
        draft.write(folder)
        draft.manifest["data"] = summarise_log(night.log, now=moment_of(settings))
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
        check_finished(named, settings.milvus)
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


def _warm_start(night: Night, watcher: Watcher) -> WarmStart | None:
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


def _beside(night: Night, is_new: np.ndarray) -> Beside:
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
