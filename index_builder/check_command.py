"""`t2diff-index check`: put a bundle through the gates by hand, without publishing anything.

A bundle is asked about each user's last interaction in the newest day of `--logs`; one that was trained on
those has seen the answers. `t2diff-model train` leaves them out (its split is leave-one-out).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from index_builder.bundle_files import BUNDLE_ID
from index_builder.publish import Store

if TYPE_CHECKING:
    from index_builder.bundle import Bundle
    from index_builder.quality import Check
    from model.data.dataset import EvaluationSet

REFUSED = 3
"""The exit status when a gate refuses the bundle."""


def check(
    bundle: Annotated[str, typer.Argument(help="Bundle to check: a path, a URL, or an id in --against.")],
    against: Annotated[
        str, typer.Option("--against", metavar="STORE", help="Store whose served bundle is the one to beat.")
    ] = "",
    logs: Annotated[
        list[Path] | None, typer.Option("--logs", help="Log file or folder; may be given several times.")
    ] = None,
    format: Annotated[str, typer.Option(help="What the log is; auto looks at names and columns.")] = "auto",
    user_column: Annotated[str, typer.Option(help="Column of an event log that names the user.")] = "user_id",
    item_column: Annotated[str, typer.Option(help="Column of an event log that names the item.")] = "item_id",
    timestamp_column: Annotated[
        str, typer.Option(help="Column of an event log with unix times; empty when it has none.")
    ] = "timestamp",
    min_interactions: Annotated[int, typer.Option(help="Drop users with fewer interactions.")] = 5,
    max_per_user: Annotated[int | None, typer.Option(help="Keep only each user's last N.")] = None,
    limits: Annotated[
        Path | None, typer.Option("--limits", help="TOML file whose table [gates] holds limits.")
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option("--limit", help="A limit as name=value, over --limits; may be given several times."),
    ] = None,
    now: Annotated[
        int | None, typer.Option(help="Unix second to judge the log's age by.", show_default="the clock's")
    ] = None,
) -> None:
    """Put a bundle through every gate of a nightly build; exit status 3 when one refuses it."""
    from index_builder import ann
    from index_builder.gate_limits import read_limits
    from index_builder.gates import gate_bundle, refused

    ann.set_num_threads(1)
    read = read_limits(limit or (), file=limits)
    url, current = _find(bundle, against)
    newest_day, data = None, None
    if logs:
        options = {
            "format": format,
            "user_column": user_column,
            "item_column": item_column,
            "timestamp_column": timestamp_column,
        }
        newest_day, data = _read(logs, options, min_interactions, max_per_user, now)
    checks = gate_bundle(url, current, newest_day, read, now=now, data=data)
    _print_table(checks)
    stopped = refused(checks)
    for one in stopped:
        print(f"refused: {one}")
    skipped = sum(bool(one.skipped) for one in checks)
    print(
        f"{len(checks) - len(stopped) - skipped} gates passed, {len(stopped)} refused, {skipped} were skipped"
    )
    if stopped:
        raise typer.Exit(REFUSED)


def _find(bundle: str, against: str) -> tuple[str, Bundle | None]:
    """The bundle's URL, and the bundle to compare it with: the served one, or the one served before it."""
    from index_builder.bundle import load_bundle

    if not against:
        if BUNDLE_ID.fullmatch(bundle) and not Path(bundle).exists():
            raise ValueError(f"bundle {bundle} is an id: name its store with --against, or give its path")
        return bundle, None
    store = Store(against)
    in_store = bundle in store.bundle_ids()
    url = store.bundle_url(bundle) if in_store else bundle
    others = [name for name in store.history() if name != url.rstrip("/").rpartition("/")[2]]
    return url, load_bundle(store.bundle_url(others[0])) if others else None


def _read(
    logs: Sequence[Path],
    options: dict[str, Any],
    min_interactions: int,
    max_per_user: int | None,
    now: int | None,
) -> tuple[EvaluationSet, dict[str, Any]]:
    """The questions of the newest day, and what is to be said of the log."""
    from index_builder.log_summary import of_newest_day, summarise_log
    from model.data.dataset import leave_one_out
    from model.data.interactions import Rules
    from model.data.reader import ReadOptions, read_interactions

    rules = Rules(min_interactions=min_interactions, max_per_user=max_per_user)
    log = read_interactions(logs, options=ReadOptions(**options, now=now), rules=rules)
    return of_newest_day(leave_one_out(log).test, now=now), summarise_log(log, now=now)


def _print_table(checks: Sequence[Check]) -> None:
    rows: list[tuple[str, ...]] = [("gate", "figure", "at least", "at most", "", "")]
    for one in checks:
        figure = "-" if one.skipped else f"{one.value:.4g}"
        ends = ("-" if end is None else f"{end:g}" for end in (one.at_least, one.at_most))
        rows.append((one.name, figure, *ends, one.outcome, one.skipped or one.detail))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:5], widths, strict=True)]
        print("  ".join([*cells, row[5]]).rstrip())
