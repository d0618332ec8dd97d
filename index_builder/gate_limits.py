"""How far a night's bundle may differ from the last one and still be published: every gate's limit.

Read once, from a settings file's table `[gates]` and from `name=value` on the command line, then passed down.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TABLE = "gates"


@dataclass(frozen=True)
class GateLimits:
    """The limits, and why they are what they are. `inf` (or `-inf`) turns the two ends of most of them off.

    What the newest day says of quality, asked of both bundles for the same users:
    max_recall_drop, max_mrr_drop: the share that Recall@20 (MRR@20) may have lost *for sure*, with
        one-sided `drop_confidence` by the paired bootstrap over users. Retraining alone moves MRR by 4 %
        (two seeds, MovieLens-1M), so 0.05 is let pass. What is sure depends on the users: with 127 of them
        (a made-up night) a Recall@20 seen 20 % lower had lost 2 % for sure, one 36 % lower 19 %; the gap
        shrinks as √users, to 3 points at 5,000. At a true drop of exactly the limit a night is refused
        wrongly twice in 100 at most, at none next to never. Small losses every night add up unseen
    min_questions: users asked at least; fewer cannot show that a bundle which answers nothing is worse
    max_questions: users asked at most, evenly spread: beyond it a night gains nothing but minutes
    max_behind_popular: by how much Recall@20 may lie below what the popular list alone would have; the one
        yardstick of quality that needs no last bundle. On MovieLens-1M a trained model has several times it
    min_answered_share: of users who get as many candidates as asked, all finite; a night trained on the log
        that it is asked about knows their histories, so a few in a hundred is already odd
    min_known_target_share: of the newest day's next items that the bundle can recall at all
    min_coverage, min_coverage_ratio: distinct items in the answers over what M items and that many places
        allow, and the same over the last bundle's; the popular list alone stays below both
    max_popular_share, max_popular_rise: places held by the bundle's most popular items, and by how much
        more of them than in the last bundle; trained models lie at a few times the items' own share
    min_ann_overlap: of the exact top 100 that the index finds; 0.99 is what it was tuned to

    The embeddings:
    max_zero_share, max_norm_over_median, max_duplicate_share: as of every build
    min_spread: 1 - mean cosine of two items; 0.02 is a table whose items all point the same way
    max_norm_ratio: the median norm over the last bundle's, or the inverse. A night moves it by a few percent
    min_similarity: linear CKA with the last bundle's embeddings of the same items, which turning, mirroring
        and scaling the whole space do not change. On MovieLens-1M shuffled rows have 0.003, rows shifted by
        one 0.08, two recipes or models trained apart 0.84 to 0.998; made-up warm-started nights 0.99
    max_tower_difference: the share of item embeddings that are not what the model's item tower gives

    The catalogue and the contract:
    min_items_ratio, max_items_ratio: number of items over the last bundle's; a catalogue grows slowly and
        items retire in batches
    min_kept_share: of the last bundle's items that are still there
    max_contract_changes: of model, dimension and metric against the last bundle; a change on purpose is
        let pass by 1, 2 or 3 for one night

    The log (its newest day is as of `log_summary`):
    max_age_hours, max_ahead_hours: of its newest interaction; a whole day late is a day that is missing,
        and clocks that disagree by more than an hour are wrong
    max_backwards_hours: by how much it may end before the last bundle's log; a second build on one day may
    min_day_ratio, max_day_ratio: users, and interactions, of the newest day over those of the last night;
        weekends and holidays move them by a factor of two
    min_log_ratio, max_log_ratio: the same of the whole log
    max_top_item_share, max_top_user_share: of the newest day's interactions on one item, by one user: bots
    max_top_time_share: of the log's interactions in one and the same second: a clock that stood still

    load_timeout_s: how long a fresh process may take to load the bundle and answer its canary
    """

    max_recall_drop: float = 0.05
    max_mrr_drop: float = 0.05
    drop_confidence: float = 0.99
    min_questions: float = 30
    max_questions: float = 5_000
    max_behind_popular: float = 0.0
    min_answered_share: float = 0.95
    min_known_target_share: float = 0.9
    min_coverage: float = 0.02
    min_coverage_ratio: float = 0.5
    max_popular_share: float = 0.8
    max_popular_rise: float = 0.3
    min_ann_overlap: float = 0.9

    max_zero_share: float = 0.01
    max_norm_over_median: float = 100.0
    max_duplicate_share: float = 0.1
    min_spread: float = 0.02
    max_norm_ratio: float = 2.0
    min_similarity: float = 0.5
    max_tower_difference: float = 0.0

    min_items_ratio: float = 0.9
    max_items_ratio: float = 1.5
    min_kept_share: float = 0.9
    max_contract_changes: float = 0

    max_age_hours: float = 24.0
    max_ahead_hours: float = 1.0
    max_backwards_hours: float = 0.0
    min_day_ratio: float = 0.25
    max_day_ratio: float = 4.0
    min_log_ratio: float = 0.5
    max_log_ratio: float = 2.0
    max_top_item_share: float = 0.3
    max_top_user_share: float = 0.3
    max_top_time_share: float = 0.3

    load_timeout_s: float = 300.0

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
                raise ValueError(f"gate limit {name} must be a number, got {value!r}")
        if not 0.5 <= self.drop_confidence < 1:
            raise ValueError(
                f"gate limit drop_confidence must be at least 0.5 and below 1, got {self.drop_confidence}"
            )
        for name in ("min_questions", "max_questions", "max_norm_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"gate limit {name} must be at least 1, got {getattr(self, name)}")
        if self.load_timeout_s <= 0:
            raise ValueError(f"gate limit load_timeout_s must be above 0, got {self.load_timeout_s}")


def read_limits(settings: Collection[str] = (), *, file: Path | None = None) -> GateLimits:
    """The defaults, over them the table `[gates]` of a TOML file, over that `name=value` settings.

    Raises ValueError for an unknown limit, a value that is no number, or a file that cannot be read.
    """
    values: dict[str, Any] = {}
    if file is not None:
        values |= _check_names(_read_table(file), f"table [{TABLE}] of {file}")
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"limit must be given as name=value, got {setting!r}")
        try:
            values |= _check_names({name: float(text)}, "--limit")
        except ValueError as error:
            if "could not convert" not in str(error):
                raise
            raise ValueError(f"gate limit {name} must be a number, got {text!r}") from None
    return GateLimits(**values)


def _read_table(file: Path) -> Mapping[str, Any]:
    try:
        settings = tomllib.loads(file.read_text())
    except OSError as error:
        raise ValueError(f"cannot read the limits in {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not TOML: {error}") from error
    table = settings.get(TABLE, {})
    if not isinstance(table, dict):
        raise ValueError(f"{file}: [{TABLE}] must be a table of limits, got {table!r}")
    return table


def _check_names(values: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    known = [field.name for field in dataclasses.fields(GateLimits)]
    for name in values:
        if name not in known:
            raise ValueError(f"{where}: there is no gate limit {name!r}; there are {', '.join(known)}")
    return values
