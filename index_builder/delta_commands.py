"""`t2diff-index` add-items, delete-items, undelete-items, delta: what changes between two bundles."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from index_builder.bundle_files import ITEM_IDS
from index_builder.delta import Delta, DeltaError, DeltaFile, NewItem
from index_builder.item_definitions import read_item_definitions
from index_builder.pointer import read_pointer
from index_builder.storage import open_storage

if TYPE_CHECKING:
    from model.data.interactions import Interactions

StoreArgument = Annotated[
    str, typer.Argument(help="Bundle store: a folder or an fsspec URL.", metavar="STORE")
]
Ids = Annotated[list[str] | None, typer.Option(help="Item id; may be given several times.")]
IdFile = Annotated[Path | None, typer.Option("--file", help="File with one item id a line.")]

UserColumn = Annotated[str, typer.Option(help="Column of the log that names the user.")]
ItemColumn = Annotated[str, typer.Option(help="Column of the log that names the item.")]
TimestampColumn = Annotated[
    str, typer.Option(help="Column of the log with unix times; empty when it has none.")
]

# Reading logs needs torch, seconds to import: those imports stand inside what needs them.


def add_items(
    store: StoreArgument,
    items: Annotated[
        Path | None,
        typer.Option(help="CSV (item_id, similar_item_ids, features in other columns) or JSON Lines."),
    ] = None,
    logs: Annotated[
        list[Path] | None,
        typer.Option(help="Recent log: similar items are counted from its sessions. May be repeated."),
    ] = None,
    min_occurrences: Annotated[
        int,
        typer.Option(
            min=1, help="Without --items: what occurs this often in the logs and in no bundle is new."
        ),
    ] = 5,
    session_gap_s: Annotated[
        int, typer.Option(min=1, help="A longer pause between two interactions begins another session.")
    ] = 1800,
    user_column: UserColumn = "user_id",
    item_column: ItemColumn = "item_id",
    timestamp_column: TimestampColumn = "timestamp",
) -> None:
    """Recall new items from now on, without a new bundle: running services follow within their poll."""
    if items is None and not logs:
        raise ValueError("nothing to add: name a file with --items, or logs to find new items in with --logs")
    known = _served_item_ids(store)
    new = read_item_definitions(items, complete=not logs) if items is not None else []
    if logs:
        columns = (user_column, item_column, timestamp_column)
        new = _defined_by_logs(
            new, logs, known, columns, min_occurrences=min_occurrences, session_gap_s=session_gap_s
        )
    unusable = [item.item_id for item in new if not (item.similar or item.features)]
    if unusable:
        print(f"left out: {len(unusable)} items that are beside no known item, {unusable[0]!r} first")
    new = [item for item in new if item.similar or item.features]
    held = sum(item.item_id in known for item in new)
    if held:
        print(f"note: the served bundle holds {held} of them already, and its embeddings count")
    alone = [item for item in new if not item.features and not any(name in known for name in item.similar)]
    if alone:
        print(f"note: nothing similar to {len(alone)} of them is in the served bundle: they wait for one")
    delta = DeltaFile(store).add(new)
    print(f"added {len(new)} items")
    _print_counts(delta)


def delete_items(store: StoreArgument, ids: Ids = None, file: IdFile = None) -> None:
    """Never recall these items again: running services follow within their poll."""
    gone = _named_ids(ids, file)
    delta = DeltaFile(store).delete(gone)
    print(f"deleted {len(gone)} items")
    _print_counts(delta)


def undelete_items(store: StoreArgument, ids: Ids = None, file: IdFile = None) -> None:
    """Allow deleted items to be recalled and added again."""
    back = _named_ids(ids, file)
    delta = DeltaFile(store).undelete(back)
    print(f"undeleted {len(back)} items")
    _print_counts(delta)


def show_delta(store: StoreArgument) -> None:
    """List the items that are newer than the bundle, and the deleted ones."""
    delta = DeltaFile(store).read()
    _print_counts(delta)
    for item in delta.items.values():
        known = f"{len(item.similar)} similar, {len(item.features)} features"
        print(f"new      {_time(item.added)}  {item.item_id}  ({known})")
    for item_id, at in delta.deleted.items():
        print(f"deleted  {_time(at)}  {item_id}")


def try_new_items(
    store: StoreArgument,
    data: Annotated[list[Path], typer.Option(help="Log that the bundle was trained on; may be repeated.")],
    catalogue: Annotated[Path | None, typer.Option(help="As of build.")] = None,
    items: Annotated[int, typer.Option(min=1, help="How many items of the bundle are hidden.")] = 100,
    consumers: Annotated[int, typer.Option(min=1, help="How many first consumers define them.")] = 10,
    user_column: UserColumn = "user_id",
    item_column: ItemColumn = "item_id",
    timestamp_column: TimestampColumn = "timestamp",
) -> None:
    """Measure how well new items are placed: hide items of the served bundle and place them again."""
    import torch

    from index_builder.bundle import current_bundle, load_bundle
    from index_builder.item_features import read_catalogue
    from index_builder.new_item_trial import run_trial

    torch.set_num_threads(1)
    url = current_bundle(store)
    if url is None:
        raise ValueError(f"nothing is published in store {store}")
    features = None if catalogue is None else read_catalogue(catalogue)
    log = _read_log(data, (user_column, item_column, timestamp_column))
    trials = run_trial(load_bundle(url), log, num_items=items, num_consumers=consumers, catalogue=features)
    print(f"{'placed by':<16}recall@20  recall@100  exposure")
    for trial in trials:
        figures = f"{trial.recall_at_20:9.4f}  {trial.recall_at_100:10.4f}  {trial.exposure:8.4f}"
        print(f"{trial.placed_by:<16}{figures}")


def _defined_by_logs(
    items: list[NewItem],
    logs: list[Path],
    known: Collection[str],
    columns: tuple[str, str, str],
    *,
    min_occurrences: int,
    session_gap_s: int,
) -> list[NewItem]:
    from index_builder.similar_items import count_similar, define_items, find_new_items

    if not known:
        raise DeltaError("nothing is published in the store: without a bundle nothing is new, or similar")
    log = _read_log(logs, columns)
    if not items:
        items = [NewItem(name) for name in find_new_items(log, known, min_occurrences=min_occurrences)]
        if not items:
            raise DeltaError(
                f"no item occurs {min_occurrences} times in the logs that the served bundle does not hold: "
                "lower --min-occurrences, or name items with --items"
            )
    similar = count_similar(log, [item.item_id for item in items], known=known, session_gap_s=session_gap_s)
    return define_items(items, similar)


def _read_log(paths: list[Path], columns: tuple[str, str, str]) -> Interactions:
    from model.data.interactions import Rules
    from model.data.reader import ReadOptions, read_interactions

    user, item, timestamp = columns
    options = ReadOptions(user_column=user, item_column=item, timestamp_column=timestamp)
    return read_interactions(paths, options=options, rules=Rules(min_interactions=1))


def _served_item_ids(store: str) -> Collection[str]:
    """The item ids of the served bundle; none before the first publication."""
    from index_builder.item_ids import read_item_ids

    storage = open_storage(store)
    history = read_pointer(storage)
    data = storage.read(f"{history[0]}/{ITEM_IDS}") if history else None
    if data is None:
        return ()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ITEM_IDS
        path.write_bytes(data)
        return read_item_ids(path)[1]


def _named_ids(ids: list[str] | None, file: Path | None) -> list[str]:
    named = list(ids or [])
    if file is not None:
        named += [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]
    if not named:
        raise ValueError("no item was named: give --ids, or --file with one id a line")
    return named


def _print_counts(delta: Delta) -> None:
    print(f"delta {delta.version}: {len(delta.items)} new items, {len(delta.deleted)} deleted")


def _time(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
