"""`t2diff-loadtest`: fill the service with users, load it by the clock, report."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from loadtest.arrivals import ARRIVALS, check_schedule
from loadtest.comparison import compare
from loadtest.errors import LoadtestError
from loadtest.generator import MAX_CONNECTIONS, user_id
from loadtest.knee import Knee, find_knee
from loadtest.knee_command import knee as knee_command
from loadtest.probe import Probe, ProbeSettings, run_probe
from loadtest.ratio_check import compare_command
from loadtest.seeding import (
    MAX_EVENTS_PER_USER,
    bundle_item_ids,
    seed_users,
    sequences_from_items,
    sequences_from_log,
)
from loadtest.target import check_url, describe_service, is_loopback_url
from loadtest.verdict import verdict

_err = Console(stderr=True, highlight=False)
app = typer.Typer(
    help="Load tests of the recall service: open-loop, latency counted from the intended send time.\n\n"
    "First `seed` the users, then `run`; `report` renders again or compares.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

Url = Annotated[str, typer.Option(help="The service.", show_default=True)]
Users = Annotated[int, typer.Option(min=1, max=999_999, help=f"Users {user_id(1)}, {user_id(2)}, …")]
AllowRemote = Annotated[
    bool,
    typer.Option("--allow-remote", help="Allow a host that is not this machine. It must be yours to load."),
]


@app.command()
def run(
    url: Url = "http://127.0.0.1:8000",
    rate: Annotated[
        str | None, typer.Option(help="Requests per second; several rates as 50,100,200.", show_default=False)
    ] = None,
    knee: Annotated[
        bool, typer.Option("--find-knee", help="Search for the highest rate that holds, instead of --rate.")
    ] = False,
    start_rate: Annotated[float, typer.Option(help="Where the search starts.")] = 50.0,
    max_rate: Annotated[float, typer.Option(help="Where the search stops at the latest.")] = 4000.0,
    p99_limit_ms: Annotated[float, typer.Option(help="A rate holds only with a p99 up to this.")] = 100.0,
    duration: Annotated[float, typer.Option(help="Seconds measured per rate.")] = 10.0,
    warmup: Annotated[float, typer.Option(min=0, help="Seconds of load before them, not counted.")] = 2.0,
    users: Users = 1000,
    top_k: Annotated[int, typer.Option(min=1, max=1000, help="Candidates asked for.")] = 100,
    arrivals: Annotated[str, typer.Option(help="Spacing of the requests: constant or poisson.")] = "constant",
    timeout_ms: Annotated[float, typer.Option(min=1, help="A request is given up after this.")] = 5000.0,
    max_connections: Annotated[
        int, typer.Option(min=1, max=MAX_CONNECTIONS, help="More requests than this in flight wait, counted.")
    ] = 512,
    pin_cpu: Annotated[
        int | None, typer.Option(min=0, help="Run the load generator on this CPU only.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the users' order and of poisson arrivals.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the report.", show_default="runs/loadtest/<UTC time>", file_okay=False),
    ] = None,
    allow_remote: AllowRemote = False,
) -> None:
    """Load POST /recall and report: JSON, Markdown and a figure.

    Every rate is probed for --warmup + --duration seconds. A rate holds when ≥ 99 % of it was achieved,
    without errors, degraded or short answers, and with a p99 up to --p99-limit-ms.
    """
    started = datetime.now(UTC)
    settings = ProbeSettings(
        url=check_url(url, allow_remote=allow_remote),
        duration_s=duration,
        warmup_s=warmup,
        num_users=users,
        top_k=top_k,
        arrivals=arrivals,
        timeout_ms=timeout_ms,
        max_connections=max_connections,
        seed=seed,
        pin_cpu=pin_cpu,
    )
    rates = _rates(rate, knee)
    _check(settings, rates or [start_rate, max_rate], p99_limit_ms)
    folder = out or Path("runs/loadtest") / started.strftime("%Y%m%dT%H%M%SZ")
    service = describe_service(settings.url)
    _err.print(
        f"{settings.url}: {service.get('model')}, bundle {service.get('bundle')}, on {service.get('device')}"
    )

    with _probing(settings, p99_limit_ms) as probe:
        found: Knee | None = None
        if knee:
            found = find_knee(probe, start_rate=start_rate, max_rate=max_rate, p99_limit_ms=p99_limit_ms)
        probes = list(found.probes) if found else [probe(rate) for rate in rates]

    from loadtest import report  # here, for matplotlib takes a second to import

    facts = report.Run(
        command=shlex.join(["t2diff-loadtest", *sys.argv[1:]]),
        started=started,
        service=service,
        bundle_after=describe_service(settings.url).get("bundle"),
        settings=settings,
        p99_limit_ms=p99_limit_ms,
        service_on_this_machine=is_loopback_url(settings.url),
    )
    assembled = report.assemble(facts, probes, found)
    report.write_report(assembled, folder)
    typer.echo("\n".join(verdict(assembled)).replace("**", ""))
    typer.echo(f"- Report: {folder / 'report.md'}")


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
    allow_remote: AllowRemote = False,
) -> None:
    """Give the load test's users sequences, through POST /events: from --log or from --bundles.

    Seeding again from the same log changes nothing; random items are appended, the latest are kept.
    """
    base = check_url(url, allow_remote=allow_remote)
    if (log is None) == (bundles is None):
        raise LoadtestError("name either --log FILE (real sequences) or --bundles STORE (random items)")
    describe_service(base)
    if log is not None:
        sequences = sequences_from_log(log, num_users=users, events_per_user=events_per_user, seed=seed)
    else:
        sequences = sequences_from_items(
            bundle_item_ids(str(bundles)), num_users=users, events_per_user=events_per_user, seed=seed
        )
    with _progress() as bars:
        bar = bars.add_task("users", total=users, note="")
        num_events = seed_users(base, sequences, lambda done: bars.advance(bar, done))
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


@app.command()
def tower(
    bundle: Annotated[
        Path | None,
        typer.Option(help="Folder of a T2Diff bundle; else random weights.", show_default=False),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each engine at each batch size.")] = 12,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here too, flat.", show_default=False)
    ] = None,
) -> None:
    """Time the user tower on every engine that this machine can run, one core, no service.

    The engines take turns; medians of processor time; ratios are to the plain model code.
    """
    from loadtest.tower_bench import bench_towers  # here, for torch takes a second to import
    from loadtest.tower_table import tower_model, tower_table

    model = tower_model(bundle)
    with _progress() as bars:
        bar = bars.add_task("rounds", total=rounds, note="")
        figures = bench_towers(model, rounds=rounds, on_round=lambda done: bars.update(bar, completed=done))
    typer.echo(tower_table(figures))
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=1) + "\n")


@app.command()
def gpu(
    bundle: Annotated[
        Path | None,
        typer.Option(help="Folder of a T2Diff bundle; else random weights.", show_default=False),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each engine at each batch size.")] = 9,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here too, flat.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder that a dated report is put into.", show_default=False, file_okay=False),
    ] = None,
) -> None:
    """Build, check and time everything that runs on a GPU, in under ten minutes; exit code 2 without one.

    Exit code 1 when an engine is further from float64 than it may be.
    """
    from loadtest.gpu_bench import bench_gpu, gpu_report, write_gpu_report  # here, for torch takes a second
    from loadtest.tower_table import tower_model

    command = shlex.join(["t2diff-loadtest", *sys.argv[1:]])
    figures = bench_gpu(tower_model(bundle), rounds=rounds, say=_err.print)
    typer.echo(gpu_report(figures, command))
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=1) + "\n")
    if out is not None:
        typer.echo(f"- Report: {write_gpu_report(figures, command, out) / 'report.md'}")
    if figures["wrong"]:
        raise typer.Exit(1)


app.command("knee")(knee_command)
app.command("compare")(compare_command)


def main() -> None:
    """Entry point: errors meant for people are one line and exit code 2."""
    try:
        app()
    except LoadtestError as error:
        _err.print(f"error: {error}", markup=False, soft_wrap=True)
        sys.exit(2)


def _rates(text: str | None, knee: bool) -> list[float]:
    if (text is None) != knee:
        raise LoadtestError("name either --rate RATE[,RATE…] or --find-knee")
    try:
        return [float(part) for part in (text or "").split(",") if text]
    except ValueError:
        raise LoadtestError(f"rate {text!r} is not a number or a list such as 50,100,200") from None


def _check(settings: ProbeSettings, rates: list[float], p99_limit_ms: float) -> None:
    """Everything that can be refused is refused before the first request goes out."""
    if settings.arrivals not in ARRIVALS:
        raise LoadtestError(f"arrivals {settings.arrivals!r} is not one of {', '.join(ARRIVALS)}")
    if settings.pin_cpu is not None and settings.pin_cpu >= (os.cpu_count() or 1):
        raise LoadtestError(
            f"pin-cpu {settings.pin_cpu}: this machine has the CPUs 0 to {(os.cpu_count() or 1) - 1}"
        )
    if not p99_limit_ms > 0:
        raise LoadtestError(f"p99-limit-ms {p99_limit_ms:g} must be positive")
    check_schedule(rates[0], settings.duration_s)
    for rate in rates:
        check_schedule(rate, settings.warmup_s + settings.duration_s)


@contextmanager
def _probing(settings: ProbeSettings, p99_limit_ms: float) -> Iterator[Callable[[float], Probe]]:
    """A probe function that shows its progress and prints a line when it is done."""
    with _progress() as bars:

        def probe(rate: float) -> Probe:
            bar = bars.add_task(f"{rate:g}/s", total=None, note="")

            def advance(sent: int, answered: int, of: int) -> None:
                bars.update(bar, completed=answered, total=of, note=f"{sent - answered} in flight")

            result = run_probe(settings, rate, advance)
            bars.remove_task(bar)
            broken = result.broken_by(p99_limit_ms)
            p99 = f"p99 {result.latency.p99_ms:.1f} ms" if result.latency else "no latency"
            bars.console.print(
                f"{rate:g}/s: {'did not hold: ' + ', '.join(broken) if broken else 'held, ' + p99}"
            )
            return result

        yield probe


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, TimeRemainingColumn(), console=_err, transient=True)


if __name__ == "__main__":
    main()
