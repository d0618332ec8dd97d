"""Bad builds and good nights through the gates: which were refused, by what, and which were accepted.

A refused good night or an accepted bad build fails the acceptance. In a bad build's row `refused_by` holds
every gate that would have stopped it alone, also those that are not asked any more once a fresh process could
not load it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from index_builder.bundle import Bundle, load_bundle
from index_builder.fresh_process import check_in_fresh_process
from index_builder.gate_limits import GateLimits
from index_builder.gates import gate_bundle, run_gates
from index_builder.quality import Check
from loadtest.stress.gate_ground import BadBuild, lay_ground
from loadtest.stress.gate_nights import (
    DAY_S,
    END,
    Parts,
    night_of,
    train_night,
    until,
    world_log,
    write_parts,
)
from loadtest.stress.gate_scenarios import SCENARIOS

Row = dict[str, Any]


@dataclass(frozen=True)
class WorldSize:
    """Of the made-up world: a night of it trains in about a second."""

    users: int = 1_000
    items: int = 400


def run_bad(
    names: Sequence[str] = tuple(SCENARIOS),
    *,
    size: WorldSize = WorldSize(),
    seed: int = 0,
    fresh_process: bool = True,
    report: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Make each bad build and ask every gate about it; a row for each: scenario, refused_by, passed.

    passed: whether the acceptance holds, that is whether it was refused
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        log = world_log(seed, num_users=size.users, num_items=size.items)
        ground = lay_ground(log, last_now=END - DAY_S, now=END)
        last = load_bundle(write_parts(ground.last, Path(folder)))
        for name in names:
            row = _judge(SCENARIOS[name](ground, Path(folder)), last, fresh_process=fresh_process)
            rows.append({"scenario": name, **row})
            report(rows[-1])
    return rows


def run_good(
    *,
    worlds: int,
    nights: int,
    size: WorldSize = WorldSize(),
    fresh_process: bool = True,
    report: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Night after night in several worlds, each going on from the bundle accepted before; a row for each.

    passed: whether every gate let it pass
    """
    rows = []
    for world in range(worlds):
        for night, checks in enumerate(_good_nights(world, nights, size, fresh_process), start=1):
            refused_by = [check.name for check in checks if check.refused]
            figures = {check.name: round(check.value, 6) for check in checks if not check.skipped}
            rows.append(
                {
                    "scenario": f"good night {night} of world {world}",
                    "refused_by": refused_by,
                    "passed": not refused_by,
                    "figures": figures,
                }
            )
            report(rows[-1])
    return rows


def necessary_gates(rows: Sequence[Row]) -> dict[str, list[str]]:
    """For each gate the bad builds that nothing else refused: what would be served without it."""
    alone: dict[str, list[str]] = {}
    for row in rows:
        if len(row["refused_by"]) == 1:
            alone.setdefault(row["refused_by"][0], []).append(row["scenario"])
    return alone


def _judge(build: BadBuild, last: Bundle, *, fresh_process: bool) -> Row:
    current, night = (last if build.against_last else None), build.night
    first = check_in_fresh_process(str(build.path), GateLimits()) if fresh_process else []
    try:
        rest = run_gates(load_bundle(build.path), current, night.newest_day, now=night.now)
        failure = ""
    except ValueError as error:
        rest, failure = [], str(error)
    refused = [check for check in [*first, *rest] if check.refused]
    refused_by = [check.name for check in refused] + (["(loading)"] if failure else [])
    messages = [str(check) for check in refused] + ([failure] if failure else [])
    return {"refused_by": refused_by, "passed": bool(refused_by), "messages": messages}


def _good_nights(world: int, nights: int, size: WorldSize, fresh_process: bool) -> Iterator[list[Check]]:
    log = world_log(1_000 + world, num_users=size.users, num_items=size.items)
    begin = END - nights * DAY_S
    last: Parts = train_night(night_of(until(log, begin), begin), None, seed=world, epochs=4)
    with tempfile.TemporaryDirectory() as folder:
        current = load_bundle(write_parts(last, Path(folder)))
        for number in range(1, nights + 1):
            now = begin + number * DAY_S
            night = night_of(until(log, now), now)
            parts = train_night(night, last, seed=100 * world + number, epochs=1, learning_rate=2e-3)
            path = write_parts(parts, Path(folder))
            if fresh_process:
                checks = gate_bundle(str(path), current, night.newest_day, now=now)
            else:
                checks = run_gates(load_bundle(path), current, night.newest_day, now=now)
            yield checks
            if not any(check.refused for check in checks):
                last, current = parts, load_bundle(path)
