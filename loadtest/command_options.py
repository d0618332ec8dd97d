"""What several commands of `t2diff-loadtest` ask for, show and write in the same way."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from loadtest.generator import user_id

err = Console(stderr=True, highlight=False)

Url = Annotated[str, typer.Option(help="The service.", show_default=True)]
Users = Annotated[int, typer.Option(min=1, max=999_999, help=f"Users {user_id(1)}, {user_id(2)}, …")]
AllowRemote = Annotated[
    bool,
    typer.Option("--allow-remote", help="Allow a host that is not this machine. It must be yours to load."),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(help="File that holds an API key, for a service that takes keys.", show_default=False),
]
Bundle = Annotated[
    Path | None,
    typer.Option(help="Folder of a T2Diff bundle; else random weights.", show_default=False),
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Write the figures here too, flat.", show_default=False)
]
ReportFolder = Annotated[
    Path | None,
    typer.Option(help="Folder that a dated report is put into.", show_default=False, file_okay=False),
]


def this_command() -> str:
    """What was typed, for the report."""
    return shlex.join(["t2diff-loadtest", *sys.argv[1:]])


def write_figures(figures: dict[str, Any], json_file: Path | None) -> None:
    """To the file of --json, if there is one."""
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=1) + "\n")


def progress() -> Progress:
    """A bar on stderr that is gone when the work is done; its tasks carry a `note`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, TimeRemainingColumn(), console=err, transient=True)
