"""The nightly job under kill -9: at random moments, and before every one of its file operations.

After each kill the pointer must name a complete bundle that answers its canary, or be absent where nothing
was published yet; and the next run that is left alone must finish the work. `killed_nights` does the killing,
in a process of its own because it forks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from loadtest.errors import LoadtestError
from loadtest.stress.outcome import Options, check

NAME = "kill"

_MOMENTS, _MOMENTS_SHORT = 200, 3
_EVERY, _EVERY_SHORT = 1, 71


def run(options: Options) -> dict[str, Any]:
    """Figures: kills of both kinds, what they broke, and which next runs did not finish."""
    if options.short:
        return kill_figures(_MOMENTS_SHORT, _EVERY_SHORT, options)
    return kill_figures(_MOMENTS, _EVERY, options)


def kill_figures(moments: int, every: int, options: Options) -> dict[str, Any]:
    """moments: kills at random ones   every: 1 kills before each file operation, 2 before each second one"""
    with ThreadPoolExecutor(2) as both:  # a process of one thread each
        kinds = {"moments": moments, "operations": every}
        asked = [both.submit(_kills, kind, number, options) for kind, number in kinds.items()]
        lines = [line for found in asked for line in found.result()]
    return summarise(lines, moments, every)


def summarise(lines: list[dict[str, Any]], moments: int, every: int) -> dict[str, Any]:
    """The figures of what `killed_nights` told, and what they are held to."""
    kills = [line for line in lines if "kill" in line]
    runs = [line for line in lines if "next_run" in line]
    operations = next((line["operations"] for line in lines if "operations" in line), 0)
    at_operations = sum(line["kill"].startswith("before operation") for line in kills)
    wanted = moments + len(range(1, operations + 1, every))
    broken = [line for line in kills if line["broken"]]
    unfinished = [line for line in runs if not line["finished"]]
    return {
        "kills_at_random_moments": len(kills) - at_operations,
        "file_operations_of_a_night": operations,
        "every_so_many_of_them": every,
        "kills_before_file_operations": at_operations,
        "runs_left_alone": len(runs),
        "seconds_of_a_night": next((line["night_s"] for line in lines if "night_s" in line), None),
        "broken": broken[:20],
        "checks": [
            check("kills after which no complete bundle was served", len(broken), 0),
            check("next runs that did not finish the work", len(unfinished) if runs else None, 0),
            check("kills that did not happen", wanted - len(kills) if operations else None, 0),
        ],
    }


def _kills(kind: str, number: int, options: Options) -> list[dict[str, Any]]:
    """Run `killed_nights` and collect what it tells."""
    lines = []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="t2diff-kill-") as folder:
        command = [sys.executable, "-m", "loadtest.stress.killed_nights", folder, kind, str(number)]
        with (
            (Path(folder) / "errors.log").open("w+") as errors,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
            ) as process,
        ):
            for line in process.stdout or ():
                lines.append(json.loads(line))
                if len(lines) % 40 == 0:
                    options.say(f"{len(lines)} lines of {kind}, {lines[-1]}")
            if process.wait():
                errors.seek(0)
                raise LoadtestError(f"the killing of nights ended early: {errors.read()[-500:]}")
    return lines
