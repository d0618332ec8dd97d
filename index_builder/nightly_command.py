"""`t2diff-index nightly`: the nightly job as a scheduler runs it.

The last line of standard output is a JSON object that says how it ended; progress and messages go to
standard error. The exit status says what to do next, see `EXIT_STATUS`.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from index_builder import ann
from index_builder.builder_lock import LockHeldError, builder_lock
from index_builder.delta import KEEP_DELETED_DAYS, KEEP_ITEMS_DAYS
from index_builder.fold_in import Keeping
from index_builder.gate_limits import read_limits
from index_builder.milvus_option import MilvusUrl, milvus_access
from index_builder.nightly import run_night
from index_builder.nightly_inputs import NightSettings
from index_builder.nightly_progress import NightProgress
from index_builder.nightly_report import night_report
from index_builder.nightly_run import LAST, LOCK, REPORT, write_json
from index_builder.publish import Store
from index_builder.quality import QualityError
from index_builder.retention import Retention, parse_age
from index_builder.retirement import RetirementRule
from index_builder.sign_command import SignatureKey
from index_builder.signature import read_keys
from model.command_options import Device, Threads, choose_device, parse_settings
from model.continued import same_model
from model.data.interactions import Interactions
from model.log_options import reads_log_later
from model.registry import MODELS
from model.report.page import write_page
from model.training import TrainingSettings

EXIT_STATUS = {"published": 0, "nothing_new": 0, "failed": 1, "bad_input": 2, "refused": 3, "locked": 4}
"""failed: run it again, it goes on where it was   bad_input: a log, an option or the store needs a person
refused: a gate needs a person; the current bundle stays   locked: another builder is at work"""

_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def command(arguments: list[str]) -> None:
    """Run the command with what stood behind `nightly`."""
    _app(arguments, prog_name="t2diff-index nightly", standalone_mode=True)


@_app.command()
@reads_log_later
def nightly(
    read: Callable[[], Interactions],
    store: Annotated[str, typer.Option(metavar="STORE", help="Bundle store: a folder or fsspec URL.")],
    work: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder of the lock, the run under way and its report.")
    ] = Path("nightly"),
    history: Annotated[float, typer.Option(help="Days of the logs that count, back from the newest.")] = 30.0,
    until: Annotated[
        str, typer.Option(help="Only what happened before this date, time (ISO 8601, UTC) or unix second.")
    ] = "",
    model: Annotated[str, typer.Option(help="Model: " + ", ".join(MODELS) + ".")] = "t2diff",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Model setting as name=value; repeatable.")
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="New model, new rows: drops what is retired for good.")
    ] = False,
    epochs: Annotated[int, typer.Option(help="Most epochs of a model trained from scratch.")] = 20,
    later_epochs: Annotated[int, typer.Option(help="Most epochs of one that goes on from last night.")] = 3,
    batch_size: Annotated[int, typer.Option(help="Windows in a batch.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Peak of the schedule.")] = 2e-3,
    weight_decay: Annotated[float, typer.Option(help="AdamW's.")] = 0.0,
    targets_per_window: Annotated[
        int | None, typer.Option(help="Supervised positions at a window's end; left out: all.")
    ] = None,
    patience: Annotated[
        int, typer.Option(help="Stop after so many epochs without a better Recall@20, if it is above chance.")
    ] = 3,
    validation_users: Annotated[int, typer.Option(help="Users asked after each epoch.")] = 2_000,
    save_every: Annotated[
        int, typer.Option(help="Updates between two saves that a kill goes back to.")
    ] = 200,
    seed: Annotated[int, typer.Option(help="Of weights, batches and noise.")] = 0,
    retire_after: Annotated[int, typer.Option(help="Retire items not seen for so many days.")] = 90,
    retire_below: Annotated[int, typer.Option(help="Retire items seen less often in --history.")] = 0,
    keep_added: Annotated[
        float, typer.Option(help="Days that the delta keeps an item which the bundle holds.")
    ] = KEEP_ITEMS_DAYS,
    keep_deleted: Annotated[
        float, typer.Option(help="Days that the delta keeps a deletion which the bundle holds.")
    ] = KEEP_DELETED_DAYS,
    keep: Annotated[
        int | None,
        typer.Option(help="Then prune the store: keep so many built and published last; left out: all."),
    ] = None,
    younger_than: Annotated[str, typer.Option(help="With --keep: and all younger than this.")] = "14d",
    protect: Annotated[
        list[str] | None, typer.Option(help="With --keep: and this bundle; repeatable.")
    ] = None,
    catalogue: Annotated[
        Path | None,
        typer.Option(help="CSV or Parquet with item_id and features, by which new items can be defined."),
    ] = None,
    index_kind: Annotated[str, typer.Option(help="As of `t2diff-index build`.")] = "auto",
    target_overlap: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Overlap with exact search that the index is tuned to.")
    ] = 0.99,
    milvus_url: MilvusUrl = None,
    limits: Annotated[
        Path | None, typer.Option("--limits", help="TOML file whose table [gates] holds limits.")
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option("--limit", help="Limit of a gate as name=value, over --limits; repeatable."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Publish even what the gates refuse; recorded in the bundle.")
    ] = False,
    signature_key: SignatureKey = None,
    device: Device = "auto",
    threads: Threads = 1,
) -> None:
    """Build tonight's bundle from the logs on top of the current one, and publish it if every gate holds.

    Exit status: 0 published, or nothing new; 1 failed, run it again; 2 bad input; 3 refused by a gate;
    4 another builder is at work. The last line on standard output is a JSON summary.
    """
    began = time.time()

    def job() -> dict[str, Any]:
        chosen, milvus = choose_device(device), milvus_access(milvus_url)
        first = TrainingSettings(
            epochs=epochs,
            batch_size=batch_size,
            targets_per_window=targets_per_window,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            patience=patience,
            validation_users=validation_users,
            save_every_updates=save_every,
            seed=seed,
            device=chosen,
            num_threads=threads,
        )
        config = parse_settings(settings)
        same_model(model, config, model, config)  # an unknown model or setting is said before the log is read
        night = NightSettings(
            model_name=model,
            model_config=config,
            first=first,
            later=TrainingSettings(**{**vars(first), "epochs": later_epochs}),
            history_days=_positive("history", history),
            until=_moment(until),
            retirement=RetirementRule(after_days=retire_after, below=retire_below),
            keeping=Keeping(keep_added, keep_deleted),
            retention=_retention(keep, younger_than, protect or []),
            catalogue=catalogue,
            index_kind=index_kind,
            target_overlap=target_overlap,
            milvus=milvus,
            from_scratch=from_scratch,
            force=force,
            limits=read_limits(limit or (), file=limits),
        )
        torch.set_num_threads(threads)
        ann.set_num_threads(threads)
        opened = Store(store, keys=read_keys(signature_key), milvus=milvus)
        with ExitStack() as locks:
            for path in _locks(opened, work):
                locks.enter_context(builder_lock(path))
            with NightProgress() as progress:
                summary = _outcome(lambda: run_night(night, opened, work, read=read, watcher=progress))
            _leave_report(work, _told(summary, began), opened)
        return summary

    summary = _outcome(job)
    print(json.dumps({**_told(summary, began), "checks": len(summary.get("checks", ()))}), flush=True)
    sys.exit(EXIT_STATUS[summary["outcome"]])


def _outcome(job: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the job returned, or the error that it ended with."""
    try:
        return job()
    except LockHeldError as error:
        outcome, told = "locked", str(error)
    except QualityError as error:
        outcome, told = "refused", str(error)
    except ValueError as error:
        outcome, told = "bad_input", str(error)
    except (OSError, FloatingPointError) as error:
        outcome, told = "failed", str(error)
    except Exception as error:  # ours to mend; the scheduler still gets its line
        traceback.print_exc()
        outcome, told = "failed", repr(error)
    told = " ".join(told.split())
    print(f"error: {told}", file=sys.stderr)
    return {"outcome": outcome, "error": told}


def _told(summary: dict[str, Any], began: float) -> dict[str, Any]:
    outcome = summary["outcome"]
    ended = {"outcome": outcome, "exit_status": EXIT_STATUS[outcome]}
    moment = datetime.fromtimestamp(began, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return {**ended, **summary, "began": moment, "seconds": round(time.time() - began, 1)}


def _leave_report(work: Path, told: dict[str, Any], store: Store) -> None:
    """For programs and for people. The night has ended: what goes wrong here does not change how."""
    try:
        write_json(work / LAST, told)
        write_page(work / REPORT, night_report(told, store.summaries() if store.bundle_ids() else []))
    except Exception as error:
        print(f"NO REPORT: {' '.join(str(error).split())}", file=sys.stderr)


def _locks(store: Store, work: Path) -> list[Path]:
    """Of the work folder, and of a local store: other work folders may build for it."""
    own = [work / LOCK]
    return own if "://" in store.url else [*own, Path(store.url) / ".nightly.lock"]


def _retention(keep: int | None, younger_than: str, protected: list[str]) -> Retention | None:
    """None to prune nothing."""
    if keep is None:
        if protected:
            raise ValueError("protect is only for pruning: give --keep as well")
        return None
    return Retention(keep, parse_age(younger_than), tuple(protected))


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}")
    return value


def _moment(text: str) -> int | None:
    """Unix seconds of "2026-11-22", "2026-11-22T03:00" (UTC) or "1795314000"."""
    if not text:
        return None
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"until must be a date or time such as 2026-11-22 or 2026-11-22T03:00, got {text!r}"
        ) from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
