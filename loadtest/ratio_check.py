"""`t2diff-loadtest compare`: two sets of figures, and which ratio got worse. For people, not for CI.

Only figures that mean the same on another machine are judged: ratios of things measured in one run. Times
and rates of a run depend on the hardware and are shown, not judged.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from loadtest.errors import LoadtestError
from loadtest.markdown import table

LARGER_IS_BETTER, SMALLER_IS_BETTER = 1, -1
_RULES = (
    ("p99_over_p50", SMALLER_IS_BETTER),
    ("b1_over_b128", SMALLER_IS_BETTER),
    ("error_", SMALLER_IS_BETTER),
    ("rss_less_1_gib_over_index", SMALLER_IS_BETTER),  # below 0: none is over
    ("_over_", LARGER_IS_BETTER),
    ("peak_share", LARGER_IS_BETTER),
)
"""What a part of a figure's name says of it; the first that fits."""
SHOWN = ("knee_rps_", "overhead_us_per_request", "floor_us_per_request", "ms_per_sample_")


def compare_command(
    old: Annotated[Path, typer.Argument(help="Figures that are kept, from --json or a report's folder.")],
    new: Annotated[Path, typer.Argument(help="Figures of now.")],
    margin: Annotated[float, typer.Option(min=0, help="How much worse, relatively, is let pass.")] = 0.1,
) -> None:
    """Compare the ratios in two --json files; exit code 1 when one got worse by more than --margin."""
    before, after = read_figures(old), read_figures(new)
    judged = [name for name in before if direction(name) and name in after]
    missing = [name for name in before if direction(name) and _is_number(before[name]) and name not in after]
    if not judged:
        raise LoadtestError(f"{old} and {new} share no ratio: are they figures of the same command?")
    lost = missing + [name for name in judged if _is_number(before[name]) and not _is_number(after[name])]
    worse = {name for name in judged if got_worse(name, before[name], after[name], margin)}
    shown = [name for name in before if name.startswith(SHOWN) and name in after and name not in judged]
    rows = [
        [
            name,
            _number(before[name]),
            _number(after.get(name)),
            _change(before[name], after.get(name)),
            "**worse**" if name in worse else "**gone**" if name in lost else "",
        ]
        for name in dict.fromkeys([*judged, *lost, *shown])
    ]
    typer.echo(table(["", "old", "new", "new / old", ""], rows))
    if worse or lost:
        typer.echo(f"{len(worse)} ratios got worse by more than {margin:.0%}, {len(lost)} are gone")
        raise typer.Exit(1)


def direction(name: str) -> int:
    """Whether more of a figure is better (1) or worse (-1), or the figure is not judged (0)."""
    return next((way for part, way in _RULES if part in name), 0)


def got_worse(name: str, old: Any, new: Any, margin: float) -> bool:
    """Whether `new` is worse than `old` by more than `margin`, relatively. What is no number is no judge."""
    if not (_is_number(old) and _is_number(new)):
        return False
    if direction(name) == LARGER_IS_BETTER:
        return bool(new < old * (1 - margin))
    return bool(max(new, 0) > max(old, 0) * (1 + margin))


def read_figures(path: Path) -> dict[str, Any]:
    """A flat object of figures from a file, or from figures.json in a folder. Raises LoadtestError."""
    file = path / "figures.json" if path.is_dir() else path
    try:
        figures = json.loads(file.read_bytes())
    except OSError as error:
        raise LoadtestError(
            f"no figures at {file}: {error.strerror}; a benchmark's --json writes them"
        ) from None
    except ValueError as error:
        raise LoadtestError(f"{file} is not JSON: {error}") from None
    if not isinstance(figures, dict):
        raise LoadtestError(f"{file} holds a {type(figures).__name__}, not an object of figures")
    return figures


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _change(old: Any, new: Any) -> str:
    return f"{new / old:.2f}×" if _is_number(old) and _is_number(new) and old else "–"


def _number(value: Any) -> str:
    return f"{value:.4g}" if _is_number(value) else "–" if value is None else str(value)
