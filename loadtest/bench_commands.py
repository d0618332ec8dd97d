"""The commands `t2diff-loadtest tower` and `gpu`: what each part costs on this machine, without a service."""

from __future__ import annotations

from typing import Annotated

import typer

from loadtest.command_options import (
    Bundle,
    JsonFile,
    ReportFolder,
    err,
    progress,
    this_command,
    write_figures,
)


def tower(
    bundle: Bundle = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each engine at each batch size.")] = 12,
    json_file: JsonFile = None,
) -> None:
    """Time the user tower on every engine that this machine can run, one core, no service.

    The engines take turns; medians of processor time; ratios are to the plain model code.
    """
    from loadtest.tower_bench import bench_towers  # here, for torch takes a second to import
    from loadtest.tower_table import tower_model, tower_table

    model = tower_model(bundle)
    with progress() as bars:
        bar = bars.add_task("rounds", total=rounds, note="")
        figures = bench_towers(model, rounds=rounds, on_round=lambda done: bars.update(bar, completed=done))
    typer.echo(tower_table(figures))
    write_figures(figures, json_file)


def gpu(
    bundle: Bundle = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each engine at each batch size.")] = 9,
    json_file: JsonFile = None,
    out: ReportFolder = None,
) -> None:
    """Build, check and time everything that runs on a GPU, in under ten minutes; exit code 2 without one.

    Exit code 1 when an engine is further from float64 than it may be.
    """
    from loadtest.gpu_bench import bench_gpu, gpu_report, write_gpu_report  # here, for torch takes a second
    from loadtest.tower_table import tower_model

    command = this_command()
    figures = bench_gpu(tower_model(bundle), rounds=rounds, say=err.print)
    typer.echo(gpu_report(figures, command))
    write_figures(figures, json_file)
    if out is not None:
        typer.echo(f"- Report: {write_gpu_report(figures, command, out) / 'report.md'}")
    if figures["wrong"]:
        raise typer.Exit(1)
