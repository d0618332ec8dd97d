"""`t2diff-model report`: one HTML file about a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from model.checkpoint import load_checkpoint
from model.command_options import Device, SplitName, Threads, choose_device, split_log
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
    trained = load_checkpoint(checkpoint, choose_device(device))
    if log.item_ids != trained.item_ids:
        raise DataError(
            f"data: the items of this log are not those that {checkpoint} was trained on "
            f"({len(log.item_ids):,} here, {len(trained.item_ids):,} there); give the same log and rules"
        )
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
