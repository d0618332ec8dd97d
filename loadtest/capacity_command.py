"""`t2diff-loadtest capacity`: machines and cost for a load, and what the queue does at that utilisation."""

from __future__ import annotations

from typing import Annotated

import typer

from loadtest.capacity import Load, Measured, Plan, Prices, plan, simulate
from loadtest.errors import LoadtestError
from loadtest.markdown import table

_SIZES = [(1e6, 1e6), (100e6, 1e6), (100e6, 10e6), (1e9, 10e6), (1e9, 1e9)]


def capacity(
    users: Annotated[float | None, typer.Option(help="Users with a stored sequence, such as 1e8.")] = None,
    items: Annotated[float, typer.Option(help="Items that can be recalled.")] = 1e6,
    requests_per_user: Annotated[float, typer.Option(help="A day, on average.")] = 5.0,
    peak: Annotated[float, typer.Option(help="The busiest hour over the average one.")] = 2.5,
    utilisation: Annotated[float, typer.Option(help="Of a core in the busiest hour.")] = 0.6,
    tower_us: Annotated[float, typer.Option(help="Measured: tower, a sample.")] = Measured.tower_us,
    overhead_us: Annotated[float, typer.Option(help="Measured: the rest, a request.")] = Measured.overhead_us,
    core_hour: Annotated[float, typer.Option(help="Your price of a core's hour.")] = Prices.core_hour,
    gib_hour: Annotated[float, typer.Option(help="Your price of a GiB's hour.")] = Prices.gib_hour,
) -> None:
    """Cores, memory and cost for a load; without --users a table of loads."""
    measured = Measured(tower_us=tower_us, overhead_us=overhead_us)
    prices = Prices(core_hour, gib_hour)
    loads = [(users, items)] if users is not None else _SIZES
    try:
        plans = [
            (Load(of_users, of_items, requests_per_user, peak), of_users, of_items)
            for of_users, of_items in loads
        ]
        rows = [
            _row(of_users, of_items, plan(load, measured, prices, utilisation=utilisation))
            for load, of_users, of_items in plans
        ]
        waiting = [
            (share, simulate(share / (measured.request_us(items) / 1e6), sample_us=measured.request_us(items),
                             batch_us=measured.batch_us))
            for share in (0.3, 0.5, utilisation, 0.8, 0.9)
        ]  # fmt: skip
    except ValueError as error:
        raise LoadtestError(str(error)) from None
    head = [
        "users",
        "items",
        "peak /s",
        "us a request",
        "cores",
        "GiB a replica",
        "Redis GiB",
        "cost a month",
    ]
    typer.echo(table(head, rows))
    typer.echo(f"\nSimulated queue of one core, {items:,.0f} items:\n")
    lines = [
        [f"{share:.0%}", f"{found.p50_ms:.2f}", f"{found.p99_ms:.2f}", f"{found.batch:.1f}"]
        for share, found in waiting
    ]
    typer.echo(table(["utilisation", "p50 ms", "p99 ms", "mean batch"], lines))


def _row(users: float, items: float, found: Plan) -> list[str]:
    return [
        f"{users:,.0f}",
        f"{items:,.0f}",
        f"{found.peak_rps:,.0f}",
        f"{found.request_us:,.0f}",
        f"{found.cores:,}",
        f"{found.gib_per_replica:,.1f}",
        f"{found.redis_gib:,.0f}",
        f"{found.month:,.0f}",
    ]
