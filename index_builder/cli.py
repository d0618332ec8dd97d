"""`t2diff-index`: build, verify, list, publish, roll back and prune bundles; measure kinds of index.

Results go to standard output, progress and messages to standard error. Exit status 0: done; 2: refused,
with one line that says why; 3: a gate refused a bundle; 1: the machine failed (disk full, no permission).
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from index_builder.bench_command import bench
from index_builder.check_command import check
from index_builder.delta_commands import add_items, delete_items, show_delta, try_new_items, undelete_items
from index_builder.milvus_option import MilvusUrl, milvus_access
from index_builder.prune_command import prune
from index_builder.publish import BundleSummary, Store
from index_builder.sign_command import SignatureKey, sign
from index_builder.signature import read_keys

# Building and verifying need torch and FAISS, seconds to import: those imports stand inside the commands,
# so that list, publish and rollback answer at once.

app = typer.Typer(
    help="Turn checkpoints into verified, versioned bundles, and choose which one is served.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Threads = Annotated[
    int,
    typer.Option(
        min=1, help="CPU threads; more than 1 help a large IVF index, and hurt where the cores are busy."
    ),
]
StoreArgument = Annotated[
    str, typer.Argument(help="Bundle store: a folder or an fsspec URL.", metavar="STORE")
]


@app.command()
def build(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder written by t2diff-model train.")],
    out: Annotated[str, typer.Option("--out", metavar="STORE", help="Bundle store: a folder or fsspec URL.")],
    index_kind: Annotated[
        str,
        typer.Option(
            help="auto, flat, flat_fp16, torch, ivf_flat, ivf_pq_fs, hnsw, milvus, or cagra with cuVS. "
            "auto: what `bench` measured fastest here."
        ),
    ] = "auto",
    device: Annotated[
        str, typer.Option(help="cpu or cuda; without a GPU the CPU is used, and said.")
    ] = "cpu",
    target_overlap: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="Overlap with exact search that an approximate index is tuned to."
        ),
    ] = 0.99,
    threads: Threads = 1,
    catalogue: Annotated[
        Path | None,
        typer.Option(
            help="CSV or Parquet with item_id, perhaps title, and features: new items can then be defined "
            "by features, and the console shows titles."
        ),
    ] = None,
    milvus_url: MilvusUrl = None,
    signature_key: SignatureKey = None,
    publish: Annotated[bool, typer.Option(help="Serve the bundle when it is built and verified.")] = True,
    ray: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Embed the items on a Ray cluster: its head's HOST:PORT, auto, or local to start one here.",
        ),
    ] = "",
) -> None:
    """Build a bundle from a checkpoint, verify it and publish it."""
    from index_builder.build import STAGES, build_bundle
    from index_builder.bulk_embedding import choose_embedding
    from index_builder.item_features import read_catalogue
    from index_builder.titles import read_titles

    _set_threads(threads)
    store = Store(out, keys=read_keys(signature_key), milvus=milvus_access(milvus_url))
    features = None if catalogue is None else read_catalogue(catalogue)
    titles = None if catalogue is None else read_titles(catalogue)
    with _progress() as progress:
        task = progress.add_task("reading the checkpoint", total=len(STAGES) + 1)

        def report(stage: str) -> None:
            progress.update(task, description=stage, advance=1)

        def report_items(done: int) -> None:
            progress.update(task, description=f"{STAGES[0]}: {done:,}")

        embed = choose_embedding(ray, checkpoint, threads=threads, on_block=report_items)
        bundle_id = build_bundle(
            _read_checkpoint(checkpoint, device),
            store,
            index_kind=index_kind,
            device=device,
            target_overlap=target_overlap,
            catalogue=features,
            titles=titles,
            embed=embed,
            report=report,
        )
        progress.update(task, description="built", advance=1)
    if publish:
        store.publish(bundle_id)
    _print_bundle(store, bundle_id, store.check(bundle_id))


@app.command()
def verify(
    store: StoreArgument,
    bundle: Annotated[str, typer.Argument(help="Bundle id; the served one when left out.")] = "",
    signature_key: SignatureKey = None,
    threads: Threads = 1,
) -> None:
    """Check every byte of a bundle, load it as the service does, and replay its canary."""
    from index_builder.bundle import load_bundle
    from index_builder.canary import replay_canary
    from index_builder.quality import check_embeddings, require

    _set_threads(threads)
    opened = Store(store, keys=read_keys(signature_key))
    bundle_id = bundle or opened.current()
    if not bundle_id:
        raise ValueError(f"nothing is published in store {opened.url}: name the bundle to verify")
    with _progress() as progress:
        task = progress.add_task("checking every byte", total=3)
        manifest = opened.check(bundle_id)
        progress.update(task, description="loading", advance=1)
        loaded = load_bundle(opened.bundle_url(bundle_id))
        progress.update(task, description="replaying the canary", advance=1)
        require(check_embeddings(loaded.item_embeddings))
        replay_canary(loaded.model, loaded.index, loaded.item_ids, loaded.canary)
        progress.update(task, description="verified", advance=1)
    _print_bundle(opened, bundle_id, manifest)
    print(
        f"verified    yes: {len(manifest['files'])} files and {len(loaded.canary)} canary answers are right"
    )


@app.command("list")
def list_bundles(store: StoreArgument) -> None:
    """List the bundles of a store, latest built first."""
    summaries = Store(store).summaries()
    if not summaries:
        print("no bundles")
        return
    rows = [("bundle", "model", "items", "created", "recall@20", ""), *map(_row, summaries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@app.command()
def publish(
    store: StoreArgument,
    bundle: Annotated[str, typer.Argument(help="Bundle id.")],
    signature_key: SignatureKey = None,
) -> None:
    """Verify a bundle and serve it from now on."""
    Store(store, keys=read_keys(signature_key)).publish(bundle)
    print(f"published {bundle}")


@app.command()
def rollback(
    store: StoreArgument,
    to: Annotated[str, typer.Option(help="Bundle id to go back to; the previous one when left out.")] = "",
    signature_key: SignatureKey = None,
) -> None:
    """Serve the bundle published before the current one again; repeat to go further back."""
    opened = Store(store, keys=read_keys(signature_key))
    left = opened.current()
    print(f"rolled back from {left} to {opened.rollback(to or None)}")


app.command("add-items")(add_items)
app.command("delete-items")(delete_items)
app.command("undelete-items")(undelete_items)
app.command("delta")(show_delta)
app.command("try-new-items", hidden=True)(try_new_items)
app.command()(sign)
app.command()(prune)
app.command()(bench)
app.command()(check)


@app.command(
    add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def nightly(context: typer.Context) -> None:
    """Build, gate and publish tonight's bundle from the logs; for cron or any scheduler."""
    from index_builder.nightly_command import command  # its options come from readers that need torch

    command(context.args)


@app.command("bench-build", hidden=True)
def bench_build(
    items: Annotated[str, typer.Option(help="Numbers of generated items, separated by commas.")] = (
        "1000000,10000000"
    ),
    kinds: Annotated[str, typer.Option(help="Kinds of index, by commas; auto as for build.")] = "flat,auto",
    dim: Annotated[int, typer.Option(min=4, help="Dimensions of the embeddings.")] = 64,
    folder: Annotated[
        Path | None, typer.Option(help="Where to build; it needs three times the largest bundle's size.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write a dated report there.")] = None,
) -> None:
    """Build generated bundles in fresh processes and report their memory and time."""
    from index_builder.build_report import bench_build

    bench_build(items, kinds, dim=dim, folder=folder, out=out)


@app.command(hidden=True)
def generate(
    items: Annotated[int, typer.Argument(min=1, help="Number of items.")],
    out: Annotated[str, typer.Option("--out", metavar="STORE", help="Bundle store: a folder or fsspec URL.")],
    dim: Annotated[int, typer.Option(min=4, help="Dimensions of the embeddings.")] = 64,
    index_kind: Annotated[str, typer.Option(help="As for build.")] = "auto",
    seed: Annotated[int, typer.Option(help="Same seed, same bundle.")] = 0,
) -> None:
    """Publish a bundle of generated embeddings and an untrained user tower, to measure the service with."""
    from index_builder.generated_bundle import generate_bundle

    _set_threads(1)
    store = Store(out)
    bundle_id = generate_bundle(
        store,
        num_items=items,
        dim=dim,
        index_kind=index_kind,
        seed=seed,
        report=lambda stage: print(stage, file=sys.stderr),
    )
    store.publish(bundle_id)
    _print_bundle(store, bundle_id, store.check(bundle_id))


def main() -> None:
    """The program: errors that a person can act on become one line and an exit status."""
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        app(prog_name="t2diff-index")
    except ValueError as error:
        _fail(error, status=2)
    except OSError as error:
        _fail(error, status=1)


def _fail(error: Exception, *, status: int) -> None:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(status)


def _read_checkpoint(path: Path, device: str) -> Any:
    import torch

    from model.checkpoint import load_checkpoint, map_checkpoint

    if device.startswith("cuda") and torch.cuda.is_available():
        return load_checkpoint(path, device)
    if device.startswith("cuda"):
        print("warning: torch sees no GPU, the model runs on the CPU", file=sys.stderr)
    return map_checkpoint(path)


def _set_threads(count: int) -> None:
    import torch

    from index_builder import ann

    torch.set_num_threads(count)
    ann.set_num_threads(count)


def _progress() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<40}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )


def _print_bundle(store: Store, bundle_id: str, manifest: dict[str, Any]) -> None:
    index, counts = manifest["index"], manifest["counts"]
    served = "yes" if store.current() == bundle_id else f"no: t2diff-index publish {store.url} {bundle_id}"
    size = sum(file["size_bytes"] for file in manifest["files"].values())
    lines = {
        "bundle": bundle_id,
        "store": store.url,
        "model": manifest["model"]["name"],
        "items": f"{counts['items']:,} of {counts['embedding_dim']} dimensions",
        "index": f"{index['kind']} by {manifest['metric']}, overlap@100 {index['ann_overlap_at_100']:.4f}",
        "recall@20": _recall_at_20(manifest),
        "size": f"{size / 2**20:,.1f} MiB",
        "served": served,
    }
    for name, text in lines.items():
        print(f"{name:<12}{text}")


def _row(summary: BundleSummary) -> tuple[str, ...]:
    mark = {None: "", 0: "current"}.get(summary.published, f"published {summary.published} before")
    if summary.damage:
        return (summary.bundle_id, "-", "-", "-", "-", f"{mark} DAMAGED: {summary.damage}".strip())
    manifest = summary.manifest
    return (
        summary.bundle_id,
        manifest["model"]["name"],
        f"{manifest['counts']['items']:,}",
        manifest["created"],
        _recall_at_20(manifest),
        mark,
    )


def _recall_at_20(manifest: dict[str, Any]) -> str:
    """The validation figure if there is one, else any other split's; a dash without."""
    metrics = {name: value for name, value in manifest["offline_metrics"].items() if value is not None}
    names = sorted(name for name in metrics if name.rpartition("/")[2] == "recall_at_20")
    names.sort(key=lambda name: not name.startswith("validation"))
    return f"{metrics[names[0]]:.4f}" if names else "-"


if __name__ == "__main__":
    main()
