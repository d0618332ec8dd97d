"""`python -m loadtest.stress.run [NAME …]`: run stress tests, all of them without a name.

Each writes `stress-NAME.json` with its figures, its checks and `passed`. Exit code 0 when all passed, 1 when
one did not, 2 for a name that is not known.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
from rich.console import Console

import loadtest.stress
from loadtest.errors import LoadtestError
from loadtest.stress.outcome import Options, passed
from loadtest.target import describe_hardware, git_commit

RESULTS = Path(__file__).parents[1] / "results"
_err = Console(stderr=True, highlight=False)


def stress_tests() -> dict[str, ModuleType]:
    """Every module of this package that has a NAME, by that name."""
    found = {}
    for entry in pkgutil.iter_modules(loadtest.stress.__path__):
        if entry.name != "run":
            module = importlib.import_module(f"loadtest.stress.{entry.name}")
            if hasattr(module, "NAME"):
                found[module.NAME] = module
    return found


def run_one(name: str, module: ModuleType, *, options: Options, to: Path) -> dict[str, Any]:
    """Run a stress test and write what came of it into the folder `to`."""
    started, clock = datetime.now(UTC), time.monotonic()
    commit = git_commit()  # of what runs: the tree may move on meanwhile
    figures = module.run(options)
    report = {
        "name": name,
        "passed": passed(figures["checks"]),
        "short": options.short,
        "date": started.isoformat(timespec="seconds"),
        "duration_s": round(time.monotonic() - clock, 1),
        "hardware": describe_hardware(device=None),
        "commit": commit,
        **figures,
    }
    to.mkdir(parents=True, exist_ok=True)
    (to / f"stress-{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Which; all of them when left out.")] = None,
    short: Annotated[bool, typer.Option("--short", help="The versions that take seconds.")] = False,
    seconds: Annotated[
        float | None, typer.Option(help="Length of what runs by the clock (fuzz), if not the full one.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the reports.", file_okay=False)] = RESULTS,
) -> None:
    """Run stress tests of the service and the nightly job on real processes."""
    known = stress_tests()
    wrong = [name for name in names or [] if name not in known]
    if wrong:
        _err.print(f"stress: no test {wrong[0]!r}; there are {', '.join(sorted(known))}")
        raise typer.Exit(2)
    failed = False
    for name in names or sorted(known):
        options = Options(short=short, seconds=seconds, say=partial(_say, name))
        try:
            report = run_one(name, known[name], options=options, to=out)
        except LoadtestError as error:
            _err.print(f"{name}: {error}")
            raise typer.Exit(2) from None
        for one in report["checks"]:
            word = "ok  " if one["passed"] else "FAIL"
            _err.print(f"{name}: {word} {one['name']} = {_shown(one['value'])}, limit {_shown(one['limit'])}")
        failed |= not report["passed"]
    sys.exit(failed)


def _say(name: str, line: str) -> None:
    _err.print(f"{name}: {line}")


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    typer.run(main)
