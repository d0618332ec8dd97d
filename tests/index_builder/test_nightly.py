"""Night after night: rows stay, new items are recalled, dead ones retire, bad builds are refused."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from index_builder import nightly_candidate
from index_builder.builder_lock import LockHeldError, builder_lock
from index_builder.bundle import Bundle, load_bundle
from index_builder.candidates import recall_sequences
from index_builder.delta import Delta, DeltaError, DeltaFile, NewItem, encode_delta
from index_builder.fold_in import Keeping
from index_builder.gate_limits import GateLimits
from index_builder.nightly import run_night
from index_builder.nightly_inputs import NightSettings
from index_builder.publish import Store, SupersededError
from index_builder.quality import QualityError
from index_builder.retention import Retention
from index_builder.retirement import RetirementRule
from model.data.interactions import DataError
from model.noise import request_key
from tests.index_builder.small_night import (
    DAY,
    EARLIER,
    LATER,
    NOW,
    SETTINGS,
    Silent,
    gates_in_this_process,
    night,
    read,
    write_log,
    write_rows,
)


@pytest.fixture
def folder(tmp_path) -> Path:
    write_log(tmp_path / "log.csv")
    return tmp_path


def served(folder: Path) -> Bundle:
    store = Store(folder / "store")
    return load_bundle(store.bundle_url(store.current()))


def test_two_nights_publish_two_bundles_and_a_third_finds_nothing_new(folder):
    first = night(EARLIER, folder)
    assert (first["outcome"], first["previous"]) == ("published", None)
    second = night(LATER, folder)
    assert (second["outcome"], second["previous"]) == ("published", first["bundle"])
    watcher = Silent()
    third = night(LATER, folder, watcher=watcher)
    assert (third["outcome"], third["bundle"]) == ("nothing_new", second["bundle"])
    assert watcher.stages == ["reading"]
    assert Store(folder / "store").history() == [second["bundle"], first["bundle"]]
    assert [path.name for path in (folder / "work").iterdir()] == []


def test_the_manifest_says_what_the_night_was_made_of(folder):
    first = night(EARLIER, folder)
    assert served(folder).manifest["nightly"]["continued_from"] is None
    second = night(LATER, folder)
    manifest = served(folder).manifest
    assert manifest["nightly"]["continued_from"] == first["bundle"]
    assert manifest["nightly"]["run"] == second["run"]
    assert manifest["data"]["newest"] > NOW - DAY
    assert manifest["training_settings"]["continued_from"] == first["bundle"]
    checks = {check["name"]: check for check in manifest["checks"]}
    assert checks["recall_at_20_drop"]["outcome"] == "passed"
    assert checks["fresh_process_failures"]["outcome"] == "skipped"
    assert manifest["data"]["newest_day"]["users"] >= second["questions"]
    assert len(checks) == len(manifest["checks"])
    assert "forced" not in manifest


def test_item_rows_keep_their_index_and_new_items_follow(folder):
    write_rows(folder / "log.csv", walk(range(20), days=4))
    night(SETTINGS, folder)
    before = served(folder)
    write_rows(folder / "log.csv", [*walk(range(20), days=4), *walk(range(10, 30), days=2, start=4)])
    summary = night(SETTINGS, folder)
    after = served(folder)
    assert summary["new_items"] == len(after.vocabulary) - len(before.vocabulary) == 10
    assert list(after.vocabulary)[: len(before.vocabulary)] == list(before.vocabulary)
    assert {f"i{item}" for item in range(30)} == set(after.vocabulary)


def walk(items: range, *, days: int, start: int = 0, users: int = 30) -> list[tuple[str, str, int]]:
    """Every user walks through `items` in their order, four a day, from another place each."""
    items = list(items)
    return [
        (
            f"u{user}",
            f"i{items[(user + 4 * day + step) % len(items)]}",
            NOW - 10 * DAY + (start + day) * DAY + 60 * step + user,
        )
        for user in range(users)
        for day in range(days)
        for step in range(4)
    ]


def test_a_new_item_is_recalled_the_next_night_though_nothing_was_trained_on_it(folder):
    """It was consumed on the newest day only, between two neighbours: users of these get it."""
    rows = walk(range(20), days=6)
    write_rows(folder / "log.csv", rows)
    night(SETTINGS, folder)
    last = max(time for *_, time in rows)
    rows += [
        (f"n{user}", item, last - 600 + 60 * step + user)
        for user in range(5)
        for step, item in enumerate(["i3", "i4", "new", "i5", "i6"])
    ]
    write_rows(folder / "log.csv", rows)
    assert night(SETTINGS, folder)["new_items"] == 1
    bundle = served(folder)
    assert "new" in bundle.item_ids
    of = {item_id: bundle.item_embeddings[row] for row, item_id in enumerate(bundle.item_ids)}
    beside = np.mean([of[item_id] for item_id in ("i3", "i4", "i5", "i6")], axis=0)
    assert of["new"] @ beside / np.linalg.norm(of["new"]) / np.linalg.norm(beside) > 0.999
    near, far = ranks_of("new", ["i2", "i3", "i4"], bundle), ranks_of("new", ["i12", "i13", "i14"], bundle)
    assert near <= 8
    assert near < far


def ranks_of(item_id: str, behaviours: list[str], bundle: Bundle) -> int:
    """The place of an item among all that are recalled after these behaviours."""
    index = np.array([bundle.item_index_of[behaviour] for behaviour in behaviours])
    time = NOW - 5 * DAY + 60 * np.arange(len(index))
    sequence = type(bundle.canary[0].sequence)(index, time, int(time[-1]) + 60)
    found = recall_sequences(
        bundle.model, bundle.index, [sequence], [request_key(0, "u")], top_k=len(bundle.item_ids)
    )
    recalled = [bundle.item_ids[item - 1] for item in found.item_index[0].tolist()]
    return recalled.index(item_id) + 1


def test_an_item_not_seen_for_long_is_retired_but_still_read_and_comes_back_when_consumed(folder):
    write_rows(folder / "log.csv", walk(range(20), days=1) + walk(range(12), days=4, start=1))
    rule = RetirementRule(after_days=2)
    summary = night(SETTINGS, folder, retirement=rule)
    bundle = served(folder)
    retired = [f"i{item}" for item in range(12, 20)]
    assert summary["retired_items"] == len(retired)
    assert set(bundle.item_ids) == {f"i{item}" for item in range(12)}
    assert set(retired) < set(bundle.vocabulary)
    assert not set(retired) & set(bundle.popular)
    assert ranks_of("i3", ["i14", "i2"], bundle) >= 1  # a history with a retired item is read
    rows = walk(range(20), days=1) + walk(range(12), days=4, start=1) + walk(range(20), days=1, start=6)
    write_rows(folder / "log.csv", rows)
    row = bundle.item_index_of["i14"]
    night(SETTINGS, folder, retirement=rule)
    assert "i14" in served(folder).item_ids
    assert served(folder).item_index_of["i14"] == row


def test_an_item_is_remembered_as_seen_beyond_the_history_that_is_read(folder):
    """i19 is seen on day 0 only; on day 5 a history of three days no longer shows it."""
    first = walk(range(20), days=2)
    write_rows(folder / "log.csv", first)
    night(SETTINGS, folder)
    write_rows(folder / "log.csv", first + walk(range(10), days=4, start=3))
    kept = night(SETTINGS, folder, history_days=3.0, retirement=RetirementRule(after_days=30))
    assert (kept["retired_items"], "i19" in served(folder).item_ids) == (0, True)
    night(SETTINGS, folder, history_days=3.0, retirement=RetirementRule(after_days=3))
    assert "i19" not in served(folder).item_ids
    assert "i5" in served(folder).item_ids


def test_a_bundle_with_retired_items_reads_back_whole(folder):
    write_rows(folder / "log.csv", walk(range(20), days=1) + walk(range(12), days=4, start=1))
    night(SETTINGS, folder, retirement=RetirementRule(after_days=2))
    bundle = served(folder)
    assert len(bundle.item_ids) == len(bundle.item_embeddings) == bundle.index.num_items == 12
    assert bundle.model.num_items == len(bundle.vocabulary) == 20
    everything = bundle.model.item_embeddings().numpy()
    for row, item_id in enumerate(bundle.item_ids):
        index = bundle.item_index_of[item_id]
        np.testing.assert_array_equal(bundle.item_embeddings[row], everything[index - 1])
        assert bundle.rows.served(np.array([index])).tolist() == [row + 1]
    assert bundle.rows.served(np.array([bundle.item_index_of["i15"]])).tolist() == [0]
    case = bundle.canary[0]
    assert set(case.candidates) <= set(bundle.item_ids)


def test_from_scratch_drops_what_is_retired_for_good(folder):
    write_rows(folder / "log.csv", walk(range(20), days=2))
    night(SETTINGS, folder)
    write_rows(folder / "log.csv", walk(range(10), days=6))
    night(SETTINGS, folder, from_scratch=True)
    assert len(served(folder).vocabulary) == 10
    assert served(folder).manifest["nightly"]["continued_from"] is None


def test_another_model_keeps_the_rows_and_is_trained_from_scratch(folder):
    night(EARLIER, folder)
    before = served(folder)
    watcher = Silent()
    sasrec = {"embedding_dim": 8, "max_length": 6, "num_layers": 1}
    changed = {"model_name": "sasrec", "model_config": sasrec}
    night(LATER, folder, watcher=watcher, **changed)
    assert "trained from scratch" in watcher.notes[0]
    assert served(folder).model_name == "sasrec"
    assert list(served(folder).vocabulary)[: len(before.vocabulary)] == list(before.vocabulary)


# --- refusing -----------------------------------------------------------------------------------


def too_fast(settings: NightSettings) -> NightSettings:
    """Trained with a learning rate at which nothing is learnt."""
    return dataclasses.replace(settings, later=dataclasses.replace(settings.later, learning_rate=1.0))


STRICT = dataclasses.replace(SETTINGS.limits, max_recall_drop=-10.0)
"""No build passes this."""


def test_a_refused_build_is_not_published_and_asking_again_does_not_train_again(folder):
    first = night(EARLIER, folder)
    refused = night(LATER, folder, limits=STRICT)
    assert refused["outcome"] == "refused"
    assert refused["refused_by"] == ["recall_at_20_drop"]
    assert Store(folder / "store").bundle_ids() == [first["bundle"]]
    watcher = Silent()
    again = night(LATER, folder, limits=STRICT, watcher=watcher)
    assert (again["outcome"], again["run"], again["resumed"]) == ("refused", refused["run"], True)
    assert watcher.stages == ["reading"]


def test_another_limit_asks_the_gates_again_but_does_not_train_again(folder):
    night(EARLIER, folder)
    night(LATER, folder, limits=STRICT)
    watcher = Silent()
    assert night(LATER, folder, watcher=watcher)["outcome"] == "published"
    assert watcher.stages == ["reading", "asking the gates", "publishing"]


def test_force_publishes_what_was_refused_loudly_and_on_record(folder):
    night(EARLIER, folder)
    night(LATER, folder, limits=STRICT)
    watcher = Silent()
    forced = night(LATER, folder, limits=STRICT, force=True, watcher=watcher)
    assert (forced["outcome"], forced["forced"]) == ("published", True)
    assert any("FORCED" in note for note in watcher.notes)
    manifest = served(folder).manifest
    assert manifest["forced"] is True
    checks = {check["name"]: check["passed"] for check in manifest["checks"]}
    assert checks["recall_at_20_drop"] is False


def test_a_build_from_a_mistyped_learning_rate_is_refused(folder):
    write_rows(folder / "log.csv", walk(range(100), days=6, users=50))
    good = night(dataclasses.replace(SETTINGS, first=dataclasses.replace(SETTINGS.first, epochs=4)), folder)
    limits = dataclasses.replace(SETTINGS.limits, max_recall_drop=GateLimits().max_recall_drop)
    bad = night(too_fast(SETTINGS), folder, limits=limits)
    assert (bad["outcome"], bad["refused_by"]) == ("refused", ["recall_at_20_drop"])
    assert Store(folder / "store").current() == good["bundle"]


def test_a_log_of_tomorrow_and_one_of_last_month_are_refused_by_the_clock(folder):
    ahead = write_log(folder / "ahead.csv", now=int(time.time()) + DAY // 2)
    assert "log_age_hours" in night(SETTINGS, folder, ahead)["refused_by"]
    aged = dataclasses.replace(SETTINGS.limits, max_age_hours=24.0)
    assert night(SETTINGS, folder, limits=aged)["refused_by"] == ["log_age_hours"]
    built_again = night(EARLIER, folder, limits=aged)  # as of that day it was fresh
    assert built_again["outcome"] == "published"


def test_a_model_that_cannot_be_served_is_refused_before_the_gates(folder, monkeypatch):
    """A NaN in the trained table, as a disk or a driver may leave it."""
    load = nightly_candidate.load_checkpoint

    def broken(*arguments):
        checkpoint = load(*arguments)
        with torch.no_grad():
            checkpoint.model.item_table.weight[3] = float("nan")
        return checkpoint

    monkeypatch.setattr(nightly_candidate, "load_checkpoint", broken)
    with pytest.raises(QualityError, match="embedding_non_finite_share"):
        night(LATER, folder)
    assert Store(folder / "store").current() is None


def test_after_a_rollback_the_same_night_does_not_bring_its_bundle_back(folder):
    first, second = night(EARLIER, folder), night(LATER, folder)
    store = Store(folder / "store")
    store.rollback()
    watcher = Silent()
    again = night(LATER, folder, watcher=watcher)
    assert (again["outcome"], again["bundle"]) == ("nothing_new", second["bundle"])
    assert store.current() == first["bundle"]
    assert "--force serves it" in watcher.notes[0]
    assert night(LATER, folder, force=True)["outcome"] == "published"
    assert store.current() == second["bundle"]


def test_logs_that_cannot_make_a_night_are_said_to_be(folder):
    for rows, message in (
        ([("u", f"i{n}", NOW + n) for n in range(9)], "no user has 3 interactions before the newest day"),
        ([("u", f"i{n}", NOW - 500 * DAY + n) for n in range(9)], "no user has 3 interactions"),
    ):
        write_rows(folder / "log.csv", rows)
        with pytest.raises(DataError, match=message):
            night(SETTINGS, folder)
    with pytest.raises(DataError, match="no interaction lies before 5"):
        night(SETTINGS, folder, until=5)


# --- what was added and deleted since the last bundle --------------------------------------------


def delta(folder: Path) -> DeltaFile:
    return DeltaFile(folder / "store")


def test_an_added_item_is_folded_in_beside_its_likes_though_nobody_consumed_it(folder):
    write_rows(folder / "log.csv", walk(range(20), days=6))
    night(SETTINGS, folder)
    delta(folder).add([NewItem("added", {"i4": 2.0, "i5": 1.0, "nowhere": 1.0})])
    summary = night(SETTINGS, folder)
    assert (summary["outcome"], summary["new_items"]) == ("published", 1)
    bundle = served(folder)
    assert ranks_of("added", ["i2", "i3", "i4"], bundle) < ranks_of("added", ["i12", "i13", "i14"], bundle)
    assert [item.item_id for item in delta(folder).entries()] == ["added"]  # a rollback would miss it
    assert night(SETTINGS, folder)["outcome"] == "nothing_new"  # still in the delta, but served
    assert night(SETTINGS, folder, keeping=Keeping(items_days=0))["outcome"] == "nothing_new"
    assert delta(folder).entries() == []


def test_an_added_item_that_training_pushes_away_is_put_back_while_the_delta_tells_its_likes(folder):
    rows = walk(range(20), days=6)
    write_rows(folder / "log.csv", rows)
    night(SETTINGS, folder)
    delta(folder).add([NewItem("added", {"i4": 2.0, "i5": 1.0})])
    night(SETTINGS, folder)
    write_rows(folder / "log.csv", [*rows, *walk(range(20), days=1, start=6)])
    assert night(SETTINGS, folder)["outcome"] == "published"
    row = {item: served(folder).item_index_of[item] for item in ("added", "i4", "i5")}
    table = served(folder).model.item_embeddings().numpy()
    wanted = (2 * table[row["i4"] - 1] + table[row["i5"] - 1]) / 3
    ours = table[row["added"] - 1]
    assert ours @ wanted > 0.999 * np.linalg.norm(ours) * np.linalg.norm(wanted)


def test_an_item_of_which_nothing_known_is_told_stays_in_the_delta(folder):
    night(SETTINGS, folder)
    delta(folder).add([NewItem("strange", features=("genre=x",)), NewItem("lost", {"nowhere": 1.0})])
    assert night(SETTINGS, folder, keeping=Keeping(items_days=0))["outcome"] == "nothing_new"
    assert [item.item_id for item in delta(folder).entries()] == ["strange", "lost"]


def test_a_deleted_item_is_not_served_until_it_is_taken_back_or_added_again(folder):
    rows = walk(range(20), days=6)
    write_rows(folder / "log.csv", rows)
    night(SETTINGS, folder)
    now = int(time.time())
    (folder / "store" / "DELTA").write_bytes(encode_delta(Delta({}, {"i7": now - 3 * DAY}, revision=1)))
    at_once = {"keeping": Keeping(deleted_days=0)}
    assert night(SETTINGS, folder, **at_once)["outcome"] == "published"
    assert "i7" not in served(folder).item_ids
    assert "i7" in served(folder).vocabulary
    assert delta(folder).deleted() == []  # the bundle remembers it from here on
    rows += [("u1", "i7", now - DAY // 2)]  # shown somewhere still
    write_rows(folder / "log.csv", rows)
    assert night(SETTINGS, folder, **at_once)["outcome"] == "published"
    assert "i7" not in served(folder).item_ids
    delta(folder).add([NewItem("i7", {"i8": 1.0})])
    assert night(SETTINGS, folder, **at_once)["outcome"] == "published"
    assert "i7" in served(folder).item_ids

    delta(folder).delete(["i7"])
    night(SETTINGS, folder)
    delta(folder).undelete(["i7"])
    write_rows(folder / "log.csv", [*rows, ("u1", "i1", rows[-1][-1])])
    night(SETTINGS, folder)
    assert "i7" in served(folder).item_ids


def test_a_damaged_delta_ends_the_night_before_it_trains_and_says_how_to_mend_it(folder):
    first = night(EARLIER, folder)
    delta(folder).delete(["i7"])
    path = folder / "store" / "DELTA"
    sound = path.read_bytes()
    path.write_bytes(sound[:-10])
    watcher = Silent()
    with pytest.raises(DeltaError, match=r"is damaged, .* restore it, or remove it"):
        night(LATER, folder, watcher=watcher)
    assert watcher.stages == ["reading"]
    assert Store(folder / "store").current() == first["bundle"]
    path.write_bytes(sound)
    assert night(LATER, folder)["outcome"] == "published"


# --- what a killed builder, a failing disk or another builder left ---------------------------------


STATE = Path("training") / "state" / "state.safetensors"


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    "damage",
    [
        lambda run: cut_short(run / STATE),
        lambda run: (run / STATE).unlink(),
        lambda run: (run / "training" / "state" / "run.json").write_text("{"),
        lambda run: shutil.rmtree(run / "training" / "state"),
        lambda run: (run / "run.json").write_text(""),
        lambda run: (run / "run.json").unlink(),
        lambda run: (run / "training" / ".state-0123").mkdir(),
    ],
    ids=["state cut", "no weights", "no state record", "no state", "empty record", "no record", "leftover"],
)
def test_a_training_folder_left_half_written_is_no_obstacle(folder, damage):
    with pytest.raises(KeyboardInterrupt):
        night(LATER, folder, watcher=Stopping())
    (run,) = (folder / "work").iterdir()
    damage(run)
    assert night(LATER, folder)["outcome"] == "published"


class Stopping(Silent):
    """Ends the night in its seventh update, after a state was saved."""

    def trained(self, progress) -> None:
        if progress.update == 7:
            raise KeyboardInterrupt


def test_a_trained_model_that_the_disk_damaged_is_trained_anew_by_the_next_run(folder, monkeypatch):
    monkeypatch.setattr(nightly_candidate, "choose_served", damaging(folder / "work"))
    with pytest.raises(OSError, match="run the job again to train anew"):
        night(LATER, folder)
    monkeypatch.undo()
    watcher = Silent()
    assert night(LATER, folder, watcher=watcher)["outcome"] == "published"
    assert watcher.trained_epochs == 2


def damaging(work: Path):
    choose = nightly_candidate.choose_served

    def damage(*arguments, **named):
        (weights,) = work.glob("run-*/training/checkpoint/model.safetensors")
        cut_short(weights)
        return choose(*arguments, **named)

    return damage


def test_the_lock_of_a_builder_that_is_gone_keeps_nobody_out(tmp_path):
    path = tmp_path / "lock"
    gone = subprocess.Popen(["true"])
    gone.wait()
    path.write_text(json.dumps({"pid": gone.pid, "host": "here", "since": "2026-11-22T03:00:00Z"}))
    held = pytest.raises(LockHeldError, match=f"process {os.getpid()} on ")
    with builder_lock(path), held, builder_lock(path):
        pass
    path.write_text("half a li")
    with builder_lock(path):
        pass


def test_a_night_judged_against_a_bundle_that_is_not_served_any_more_is_not_published(folder):
    """As when two builders with work folders of their own build for one object store, or after a rollback."""
    first, other = night(EARLIER, folder)["bundle"], night(LATER, folder)["bundle"]
    Store(folder / "store").rollback()

    def publishes_another(*asked, **how):
        Store(folder / "store").publish(other)
        return gates_in_this_process(*asked, **how)

    write_log(folder / "log.csv", seed=2)
    with pytest.raises(
        SupersededError, match=f"serves {other} by now, no longer {first}: .* run the job again"
    ):
        run_night(
            SETTINGS,
            Store(folder / "store"),
            folder / "work",
            read=lambda: read(folder / "log.csv"),
            watcher=Silent(),
            gates=publishes_another,
        )
    assert Store(folder / "store").current() == other
    again = night(SETTINGS, folder)
    assert (again["outcome"], again["previous"]) == ("published", other)


# --- what is kept, and what features say ------------------------------------------------------------


def test_a_night_prunes_its_store_when_asked_to(folder):
    nights = [dataclasses.replace(SETTINGS, until=NOW - days * DAY) for days in (3, 2, 1)]
    first, _, third = (night(settings, folder)["bundle"] for settings in nights)
    store = Store(folder / "store")
    assert len(store.bundle_ids()) == 3
    keeping = {"retention": Retention(1, timedelta(0), (first,))}
    assert night(nights[2], folder, **keeping)["pruned"] == 0  # nothing new, and all are to be kept
    fourth = night(SETTINGS, folder, retention=Retention(1, timedelta(0)))
    assert (fourth["outcome"], fourth["pruned"]) == ("published", 2)
    assert set(store.bundle_ids()) == {third, fourth["bundle"]}
    assert store.rollback() == third
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        Retention(0)


def test_a_store_that_cannot_be_pruned_has_its_new_bundle_all_the_same(folder):
    watcher = Silent()
    ended = night(SETTINGS, folder, watcher=watcher, retention=Retention(1, timedelta(0), ("nowhere",)))
    assert (ended["outcome"], ended["pruned"]) == ("published", 0)
    assert "nowhere is to be kept, but store" in ended["prune_error"]
    assert any(note.startswith("NOT PRUNED: nowhere") for note in watcher.notes)


def test_a_catalogue_comes_into_the_bundle_and_another_is_another_night(folder):
    catalogue = folder / "items.csv"

    def write(kinds: int) -> None:
        item_ids = read(folder / "log.csv").item_ids
        lines = [f"{item_id},k{n % kinds}" for n, item_id in enumerate(item_ids)]
        catalogue.write_text("item_id,kind\n" + "\n".join(lines) + "\n")

    write(3)
    assert set(served_after(folder, catalogue).features.tokens) == {"kind=k0", "kind=k1", "kind=k2"}
    assert night(SETTINGS, folder, catalogue=catalogue)["outcome"] == "nothing_new"
    write(2)
    assert set(served_after(folder, catalogue).features.tokens) == {"kind=k0", "kind=k1"}
    with pytest.raises(ValueError, match=r"no-items\.csv"):
        night(SETTINGS, folder, catalogue=folder / "no-items.csv")


def served_after(folder: Path, catalogue: Path) -> Bundle:
    assert night(SETTINGS, folder, catalogue=catalogue)["outcome"] == "published"
    return served(folder)


def test_the_summary_is_json(folder):
    assert json.loads(json.dumps(night(LATER, folder)))["items"] == 40
