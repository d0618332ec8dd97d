"""Every bad build by name, each made from a good one: of a bad log, of bad parts, or of bad files.

The gates are told nothing of it. The acceptance asks all of SCENARIOS, the tests have time for SHORT.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from loadtest.stress import gate_bad_files as files
from loadtest.stress import gate_bad_logs as logs
from loadtest.stress import gate_bad_parts as parts
from loadtest.stress.gate_ground import BadBuild, Ground
from loadtest.stress.gate_nights import Parts, night_of, train_night, write_parts
from model.data.synthetic import DriftLog

Scenario = Callable[[Ground, Path], BadBuild]


def _log(change: Callable[[DriftLog, Ground], DriftLog], *, hours_after_last: float = 24) -> Scenario:
    """A night that reads a bad log and goes on from last night's good model."""

    def build(ground: Ground, folder: Path) -> BadBuild:
        now = ground.last_now + int(hours_after_last * 3600)
        night = night_of(change(ground.log, ground), now)
        trained = train_night(night, ground.last, seed=1, epochs=1, learning_rate=2e-3)
        return BadBuild(write_parts(trained, folder), night)

    return build


def _parts(change: Callable[[Ground], Parts], *, first_night: bool = False) -> Scenario:
    """A good build of a good log with a part replaced."""

    def build(ground: Ground, folder: Path) -> BadBuild:
        path = write_parts(change(ground), folder)
        return BadBuild(path, ground.night, against_last=not first_night)

    return build


def _quiet_first_night(ground: Ground, folder: Path) -> BadBuild:
    """Too few users to say anything, and no last bundle that had more."""
    few = ground.night.newest_day
    chosen = slice(0, 12)
    few = replace(
        few,
        user=few.user[chosen],
        end=few.end[chosen],
        target=few.target[chosen],
        target_time=few.target_time[chosen],
    )
    night = replace(ground.night, newest_day=few)
    return BadBuild(write_parts(ground.good, folder), night, against_last=False)


SCENARIOS: dict[str, Scenario] = {
    "empty day": _log(logs.empty_day),
    "one-user log": _log(logs.one_user_log),
    "one-user day": _log(logs.one_user_day),
    "7 of 8 log shards missing": _log(logs.most_shards_missing),
    "reader stopped early": _log(logs.reader_stopped_early),
    "only first event of a day logged": _log(logs.only_first_event_of_a_day),
    "newest day under 40 logins": _log(logs.users_of_40_logins),
    "user ids cut short": _log(logs.user_ids_cut_short),
    "half of the catalogue missing": _log(logs.half_of_the_catalogue_missing),
    "item ids with a tracking parameter": _log(logs.ids_with_tracking_parameter),
    "item ids renamed": _log(logs.ids_renamed),
    "clock a year ahead": _log(logs.clock_a_year_ahead),
    "all timestamps zero": _log(logs.times_all_zero),
    "all timestamps equal": _log(logs.times_all_equal),
    "import in one second": _log(logs.import_in_one_second),
    "older log than last night": _log(logs.older_log, hours_after_last=1),
    "log read four times": _log(logs.log_twice),
    "bot traffic on one item": _log(logs.bot_traffic),
    "quiet bot on one item": _log(logs.quiet_bot),
    "one crawler": _log(logs.one_crawler),
    "too few users to ask, first night": _quiet_first_night,
    "shuffled embeddings": _parts(parts.shuffled_embeddings),
    "less popular rows shuffled": _parts(parts.less_popular_rows_shuffled),
    "item ids shifted by one": _parts(parts.item_ids_shifted_by_one),
    "scaled norms": _parts(parts.scaled_norms),
    "one exploded item": _parts(parts.one_exploded_item),
    "one exploded item, first night": _parts(parts.one_exploded_item, first_night=True),
    "zeroed rows": _parts(parts.zeroed_rows),
    "NaN in an item": _parts(parts.nan_item),
    "NaN in the user tower": _parts(parts.nan_in_user_tower),
    "NaN in an idle weight": _parts(parts.nan_in_an_idle_weight),
    "NaN in the export": _parts(parts.nan_in_the_export),
    "user tower overflows": _parts(parts.overflowing_user_tower),
    "one pause overflows": _parts(parts.one_pause_overflows),
    "wrong dimension": _parts(parts.wrong_dimension),
    "another model": _parts(parts.another_model),
    "wrong dimension in the manifest": files.wrong_dimension_in_the_manifest,
    "popular list only": _parts(parts.popular_list_only),
    "popular list only, first night": _parts(parts.popular_list_only, first_night=True),
    "answers go the popular way": _parts(parts.one_answer_for_all),
    "untrained weights": _parts(parts.untrained_weights),
    "untrained weights, first night": _parts(parts.untrained_weights, first_night=True),
    "user tower of another build": _parts(parts.user_tower_of_another_build),
    "noisy weights": _parts(parts.noisy_weights),
    "duplicated items": _parts(parts.duplicated_items),
    "rare items alike": _parts(parts.rare_items_alike),
    "collapsed embeddings": _parts(parts.collapsed_embeddings),
    "collapsed embeddings, first night": _parts(parts.collapsed_embeddings, first_night=True),
    "truncated vocabulary": _parts(parts.truncated_vocabulary),
    "popular items lost": _parts(parts.popular_items_lost),
    "index of other embeddings": _parts(parts.index_of_other_embeddings),
    "index searched too narrowly": _parts(parts.index_searched_too_narrowly),
    "embeddings of another build": _parts(parts.embeddings_of_another_build),
    "canary of another build": _parts(parts.canary_of_another_build),
    "swapped metric": files.swapped_metric,
    "index of another dimension": files.index_of_another_dimension,
    "garbled index": files.garbled_index,
    "model unknown elsewhere, first night": files.model_unknown_elsewhere,
}

SHORT = (
    "one-user day",
    "clock a year ahead",
    "shuffled embeddings",
    "scaled norms",
    "truncated vocabulary",
    "untrained weights",
    "index of other embeddings",
)
"""Of different gates each, and quick to make."""
