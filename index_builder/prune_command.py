"""`t2diff-index prune`: see `retention`."""

from __future__ import annotations

from typing import Annotated

import typer

from index_builder.publish import Store
from index_builder.retention import parse_age
from index_builder.retention import prune as prune_store


def prune(
    store: Annotated[str, typer.Argument(help="Bundle store: a folder or an fsspec URL.", metavar="STORE")],
    keep: Annotated[
        int, typer.Option(min=1, help="How many of the latest built, and of the latest published, are kept.")
    ],
    younger_than: Annotated[str, typer.Option(help="Age up to which all are kept: 14d, 36h, 90m.")],
    protect: Annotated[
        list[str] | None, typer.Option(help="Bundle id to keep whatever its age; may be repeated.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove old bundles, never the served one nor the one before it, and what killed builds left."""
    done = prune_store(
        Store(store),
        keep=keep,
        younger_than=parse_age(younger_than),
        protected=protect or [],
        dry_run=dry_run,
    )
    word = "would remove" if dry_run else "removed"
    for bundle_id in done.removed:
        print(f"{word} {bundle_id}")
    for name in done.leftovers:
        print(f"{word} {name}, left by a process that was killed")
    for name in done.collections:
        print(f"{word} collection {name}")
    for bundle_id in done.busy:
        print(f"in use  {bundle_id}: prune again later")
    print(f"kept {len(done.kept)}, {word} {len(done.removed)} and {len(done.leftovers)} leftovers")
