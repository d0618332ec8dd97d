"""The command `t2diff-loadtest knee`: from a bundle, or a number of items, to knees, figures and a report."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import psutil
import typer

from loadtest.arrivals import check_schedule
from loadtest.command_options import JsonFile, ReportFolder, err, this_command, write_figures
from loadtest.core_sharing import slowdown
from loadtest.errors import LoadtestError
from loadtest.generator import MAX_CONNECTIONS
from loadtest.knee_bench import FLOOR, VARIANTS, Figures, KneeBench, knee_figures
from loadtest.probe import ProbeSettings
from loadtest.seeding import bundle_index_bytes, bundle_item_ids, seed_users, sequences_from_items
from loadtest.served import Served, on_cpus, started_floor, started_service
from loadtest.target import describe_hardware, describe_service, git_commit

_DIM = 64
_COPIES = 4  # of the item embeddings that making a bundle holds at once


def knee(
    bundles: Annotated[
        str | None, typer.Option(help="Bundle store; else one is generated.", show_default=False)
    ] = None,
    items: Annotated[int, typer.Option(min=100, help="Size of the generated catalogue.")] = 3_706,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, max=1000, help="Candidates asked for.")] = 100,
    engines: Annotated[
        str, typer.Option(help=f"Which of floor,{','.join(VARIANTS)} to measure.")
    ] = f"{FLOOR},{','.join(VARIANTS)}",
    server_cpus: Annotated[str, typer.Option(help="CPUs of the service and its Redis, as 0 or 0,1.")] = "0",
    generator_cpus: Annotated[
        str | None, typer.Option(help="CPUs of the generator.", show_default="the last one")
    ] = None,
    serve_options: Annotated[str, typer.Option(help="More options of t2diff-serve, for every engine.")] = "",
    start_rate: Annotated[float, typer.Option(help="Where each search starts, requests/s.")] = 100.0,
    max_rate: Annotated[float, typer.Option(help="Where each search stops at the latest.")] = 6400.0,
    p99_limit_ms: Annotated[float, typer.Option(help="A rate holds only with a p99 up to this.")] = 250.0,
    duration: Annotated[float, typer.Option(help="Seconds measured per rate.")] = 3.0,
    warmup: Annotated[float, typer.Option(min=0, help="Seconds of load before them, not counted.")] = 1.0,
    rounds: Annotated[int, typer.Option(min=1, help="Turns in which each knee is found.")] = 2,
    users: Annotated[int, typer.Option(min=1, max=999_999, help="Users that are asked for.")] = 1000,
    events_per_user: Annotated[int, typer.Option(min=1, max=1000, help="Events of each.")] = 50,
    json_file: JsonFile = None,
    out: ReportFolder = None,
) -> None:
    """Start the service on each tower engine, find what it holds, and what it adds to tower and search.

    Open-loop, from a process of its own; the engines take turns. Under ten minutes with the defaults.
    """
    started = datetime.now(UTC)
    on_server = _cpus(server_cpus, "server-cpus")
    on_generator = _cpus(generator_cpus or str((os.cpu_count() or 1) - 1), "generator-cpus")
    names = _names(engines)
    for rate in (start_rate, max_rate):
        check_schedule(rate, warmup + duration)
    if not p99_limit_ms > 0:
        raise LoadtestError(f"p99-limit-ms {p99_limit_ms:g} must be positive")
    settings = ProbeSettings(
        url="",
        duration_s=duration,
        warmup_s=warmup,
        num_users=users,
        top_k=top_k,
        arrivals="constant",
        timeout_ms=5000.0,
        max_connections=MAX_CONNECTIONS,
        seed=0,
        pin_cpu=None,  # the generator inherits this process's
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="t2diff-knee-")))
        store = bundles or _generate(folder / "bundles", items)
        options = shlex.split(serve_options)
        services = list(stack.enter_context(_services(names, store, options, top_k, on_server, folder)))
        stack.enter_context(on_cpus(on_generator))
        _seed(services, store, users, events_per_user)
        about = _about(services)
        bench = KneeBench(settings, p99_limit_ms=p99_limit_ms, max_rate=max_rate, say=err.print)
        knees = bench.run(services, start_rate=start_rate, rounds=rounds)
        figures = knee_figures(knees, bench.measured) | about
        figures |= _sizes(services, bundle_index_bytes(store))
    late = {one.name for one in bench.measured if not one.held and one.probe.generator_late}
    figures |= {f"{name}_limited_by_generator": name in late and name == FLOOR for name in knees}
    figures["slowdown_by_generator_cpus"] = slowdown(on_server, on_generator)
    figures |= {
        "date": started.isoformat(timespec="seconds"),
        "command": this_command(),
        "commit": git_commit(),
        "cpu": describe_hardware(device=None)["cpu"],
        "server_cpus": ",".join(map(str, on_server)),
        "generator_cpus": ",".join(map(str, on_generator)),
        "top_k": top_k,
        "p99_limit_ms": p99_limit_ms,
    }
    from loadtest.knee_report import knee_report, write_knee_report

    typer.echo(knee_report(figures, bench.measured))
    write_figures(figures, json_file)
    if out is not None:
        typer.echo(f"- Report: {write_knee_report(figures, bench.measured, out) / 'report.md'}")


@contextmanager
def _services(
    names: Sequence[str], store: str, options: list[str], top_k: int, cpus: Sequence[int], folder: Path
) -> Iterator[list[Served]]:
    with ExitStack() as stack:
        services = []
        for name in names:
            err.print(f"starting {name}")
            if name == FLOOR:
                running = started_floor(top_k, cpus=cpus, folder=folder / name)
            else:
                running = started_service(
                    name, store, options=[*VARIANTS[name], *options], cpus=cpus, folder=folder / name
                )
            services.append(stack.enter_context(running))
        yield services


def _seed(services: Sequence[Served], store: str, users: int, events_per_user: int) -> None:
    item_ids = bundle_item_ids(store)
    nothing: Callable[[int], None] = lambda done: None  # noqa: E731
    for served in services:
        if served.name != FLOOR:
            sequences = sequences_from_items(
                item_ids, num_users=users, events_per_user=events_per_user, seed=0
            )
            seed_users(served.url, sequences, nothing)


def _about(services: Sequence[Served]) -> Figures:
    about: Figures = {}
    for served in services:
        if served.name != FLOOR:
            said = describe_service(served.url)
            about[f"{served.name}_engine"] = said["tower_engine"]
            about |= {"index": said["index"], "num_items": said["num_items"], "bundle": said["bundle"]}
    return about


def _sizes(services: Sequence[Served], index_bytes: int) -> Figures:
    """Resident memory after the load, also beside the index, and how long each service took to start."""
    figures: Figures = {"index_bytes": index_bytes}
    for served in services:
        figures[f"{served.name}_rss_bytes"] = memory = served.memory_bytes()
        figures[f"{served.name}_rss_less_1_gib_over_index"] = (memory - 2**30) / index_bytes
        figures[f"{served.name}_start_seconds"] = served.start_s
    return figures


def _generate(folder: Path, items: int) -> str:
    from index_builder.generated_bundle import generate_bundle  # here, for torch takes a second to import
    from index_builder.publish import Store
    from service.engine import set_threads

    needed, free = items * _DIM * 4 * _COPIES, psutil.virtual_memory().available
    if needed > free:
        raise LoadtestError(
            f"items {items}: making a bundle of them takes about {needed / 2**30:.1f} GiB, "
            f"{free / 2**30:.1f} are free: ask for fewer, or name a finished one by --bundles"
        )
    set_threads(1)  # more, where something else has the other cores, took minutes for a second's work
    err.print(f"generating a bundle of {items} items")
    store = Store(folder)
    store.publish(generate_bundle(store, num_items=items, dim=_DIM))
    return str(folder)


def _cpus(text: str, option: str) -> list[int]:
    there = psutil.Process().cpu_affinity()
    try:
        cpus = [int(part) for part in text.split(",")]
    except ValueError:
        raise LoadtestError(f"{option} {text!r} is not a list of CPU numbers such as 0 or 0,1") from None
    wrong = [cpu for cpu in cpus if cpu not in there]
    if wrong:
        raise LoadtestError(
            f"{option} {wrong[0]}: this process may use the CPUs {', '.join(map(str, there))}"
        )
    return cpus


def _names(text: str) -> list[str]:
    names = list(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in (FLOOR, *VARIANTS):
            raise LoadtestError(f"engines: {name!r} is none of {', '.join((FLOOR, *VARIANTS))}")
    if names == [FLOOR]:
        raise LoadtestError(f"engines: {FLOOR!r} alone says nothing; add one of {', '.join(VARIANTS)}")
    return names
