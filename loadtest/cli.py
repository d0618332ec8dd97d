"""`t2diff-loadtest`: fill the service with users, load it by the clock, report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from loadtest.bench_commands import gpu, tower
from loadtest.capacity_command import capacity
from loadtest.command_options import AllowRemote, KeyFile, Url, Users, err, progress
from loadtest.comparison import compare
from loadtest.errors import LoadtestError
from loadtest.generator import user_id
from loadtest.knee_command import knee
from loadtest.ratio_check import compare_command
from loadtest.run_command import run
from loadtest.seeding import (
    MAX_EVENTS_PER_USER,
    bundle_item_ids,
    seed_users,
    sequences_from_items,
    sequences_from_log,
)
from loadtest.target import check_url, describe_service, key_headers

app = typer.Typer(
    help="Load tests of the recall service: open-loop, latency counted from the intended send time.\n\n"
    "First `seed` the users, then `run`; `report` renders again or compares.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

app.command("run")(run)


@app.command()
def seed(
    url: Url = "http://127.0.0.1:8000",
    users: Users = 1000,
    events_per_user: Annotated[
        int, typer.Option(min=1, max=MAX_EVENTS_PER_USER, help="Events per user; of a log, the last ones.")
    ] = 50,
    log: Annotated[
        Path | None,
        typer.Option(help="Event log (any format that training reads): real sequences.", show_default=False),
    ] = None,
    bundles: Annotated[
        str | None,
        typer.Option(help="Bundle store: random items of its published bundle.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice.")] = 0,
    key_file: KeyFile = None,
    allow_remote: AllowRemote = False,
) -> None:
    """Give the load test's users sequences, through POST /events: from --log or from --bundles.

    Seeding again from the same log changes nothing; random items are appended, the latest are kept.
    """
    base = check_url(url, allow_remote=allow_remote)
    if (log is None) == (bundles is None):
        raise LoadtestError("name either --log FILE (real sequences) or --bundles STORE (random items)")
    headers = key_headers(key_file)
    describe_service(base, headers)
    if log is not None:
        sequences = sequences_from_log(log, num_users=users, events_per_user=events_per_user, seed=seed)
    else:
        sequences = sequences_from_items(
            bundle_item_ids(str(bundles)), num_users=users, events_per_user=events_per_user, seed=seed
        )
    with progress() as bars:
        bar = bars.add_task("users", total=users, note="")
        num_events = seed_users(base, sequences, lambda done: bars.advance(bar, done), headers)
    typer.echo(f"{users:,} users, {num_events:,} events: {user_id(1)} … {user_id(users)}")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder with a report.json.")],
    against: Annotated[
        Path | None,
        typer.Option(help="Compare with this earlier report and print the ratios.", show_default=False),
    ] = None,
) -> None:
    """Render a report again from its JSON, or compare two."""
    from loadtest.report import read_report, render

    later = read_report(folder)
    if against is not None:
        typer.echo(compare(read_report(against), later))
        return
    render(later, folder)
    typer.echo(f"{folder / 'report.md'}, {folder / 'report.png'}")


app.command("tower")(tower)
app.command("gpu")(gpu)
app.command("capacity")(capacity)
app.command("knee")(knee)
app.command("compare")(compare_command)


def main() -> None:
    """Entry point: errors meant for people are one line and exit code 2."""
    try:
        app()
    except LoadtestError as error:
        err.print(f"error: {error}", markup=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
