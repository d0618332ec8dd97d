"""`t2diff-index bench`: which kind of index is fastest at which size, on this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer


def bench(
    items: Annotated[
        str, typer.Option(help="Corpus sizes to generate embeddings for, separated by commas.")
    ] = "3706,108000,1000000",
    dim: Annotated[int, typer.Option(min=2, help="Dimensions of generated embeddings.")] = 64,
    top_k: Annotated[int, typer.Option(min=1, help="Results a query.")] = 100,
    overlap: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Overlap with exact search that each kind is tuned to.")
    ] = 0.99,
    kinds: Annotated[
        str, typer.Option(help="Kinds to measure beside flat, by commas; all if left out.")
    ] = "",
    bundle: Annotated[
        Path | None, typer.Option(help="Measure this bundle's own trained embeddings instead.")
    ] = None,
    users: Annotated[int, typer.Option(min=2, help="User embeddings to search with.")] = 512,
    seed: Annotated[int, typer.Option(help="Same seed, same embeddings.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures as one flat object.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write a dated Markdown report there.")
    ] = None,
) -> None:
    """Measure every kind of index against exhaustive search: one thread, in turns, ratios."""
    import torch

    from index_builder import ann
    from index_builder.benchmark import measure_corpus
    from index_builder.benchmark_corpora import bundle_corpus, generated_corpus, parse_kinds, parse_sizes
    from index_builder.benchmark_report import figures, table, write_report

    torch.set_num_threads(1)
    ann.set_num_threads(1)
    names = parse_kinds(kinds)
    sizes = parse_sizes(items)
    measured = []
    makers = (
        [lambda: bundle_corpus(bundle, num_users=users)]
        if bundle
        else [lambda size=size: generated_corpus(size, dim, num_users=users, seed=seed) for size in sizes]
    )
    for make in makers:
        measured += measure_corpus(
            make(),
            kinds=names,
            top_k=top_k,
            target_overlap=overlap,
            report=lambda stage: print(stage, file=sys.stderr),
        )
    print(table(measured))
    if json_file is not None:
        json_file.write_text(json.dumps(figures(measured, overlap), indent=1) + "\n")
    if out is not None:
        data = f"Embeddings of bundle {bundle.name}." if bundle else f"Generated embeddings, d = {dim}."
        command = " ".join(["t2diff-index", *sys.argv[1:]])
        path = write_report(out, measured, command=command, top_k=top_k, target_overlap=overlap, data=data)
        print(f"wrote {path}", file=sys.stderr)
