"""`t2diff-model report`: one HTML file about a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from model.command_options import Device, SplitName, Threads, choose_device, load_trained_on, split_log
from model.data.interactions import DataError, Interactions
from model.log_options import reads_log

err = Console(stderr=True)


@reads_log
def report_command(
    checkpoint: Annotated[
        Path, typer.Argument(help="Run folder, for the training curves too, or checkpoint.")
    ],
    log: Interactions,
    split: SplitName = "leave-one-out",
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    device: Device = "auto",
    threads: Threads = 1,
) -> None:
    """Write one HTML file: curves, accuracy with intervals, popularity, the diffusion, the embeddings."""
    import torch

    from model.report.model_report import model_report
    from model.report.page import write_page

    torch.set_num_threads(threads)
    trained = load_trained_on(log, checkpoint, choose_device(device))
    text = model_report(
        checkpoint,
        trained,
        split_log(log, split),
        device=choose_device(device),
        say=lambda what: err.print(what),
    )
    try:
        write_page(out, text)
    except OSError as error:
        raise DataError(
            f"out: {out} cannot be written: {error.strerror}; name a file in a folder there is"
        ) from None
    print(f"wrote {out}")
