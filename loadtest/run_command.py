"""The command `t2diff-loadtest run`: load the service at given rates, or search for its knee, and report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from loadtest.arrivals import ARRIVALS, check_schedule
from loadtest.command_options import AllowRemote, KeyFile, Url, Users, err, progress, this_command
from loadtest.errors import LoadtestError
from loadtest.generator import MAX_CONNECTIONS
from loadtest.knee import Knee, find_knee
from loadtest.probe import Probe, ProbeSettings, run_probe
from loadtest.target import check_url, describe_service, is_loopback_url, key_headers
from loadtest.verdict import verdict


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
    key_file: KeyFile = None,
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
        key_file=None if key_file is None else str(key_file),
    )
    rates = _rates(rate, knee)
    _check(settings, rates or [start_rate, max_rate], p99_limit_ms)
    folder = out or Path("runs/loadtest") / started.strftime("%Y%m%dT%H%M%SZ")
    headers = key_headers(key_file)
    service = describe_service(settings.url, headers)
    err.print(
        f"{settings.url}: {service.get('model')}, bundle {service.get('bundle')}, on {service.get('device')}"
    )

    with _probing(settings, p99_limit_ms) as probe:
        found: Knee | None = None
        if knee:
            found = find_knee(probe, start_rate=start_rate, max_rate=max_rate, p99_limit_ms=p99_limit_ms)
        probes = list(found.probes) if found else [probe(rate) for rate in rates]

    from loadtest import report  # here, for matplotlib takes a second to import

    facts = report.Run(
        command=this_command(),
        started=started,
        service=service,
        bundle_after=describe_service(settings.url, headers).get("bundle"),
        settings=settings,
        p99_limit_ms=p99_limit_ms,
        service_on_this_machine=is_loopback_url(settings.url),
    )
    assembled = report.assemble(facts, probes, found)
    report.write_report(assembled, folder)
    typer.echo("\n".join(verdict(assembled)).replace("**", ""))
    typer.echo(f"- Report: {folder / 'report.md'}")


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
    with progress() as bars:

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
