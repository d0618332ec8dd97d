"""The command line options that say which log to read, given once for every command that reads one."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from model.bulk.cluster import connected
from model.bulk.reading import read_interactions_on
from model.data.interactions import Duplicates, Interactions, Rules
from model.data.reader import Format, ReadOptions, read_interactions
from model.data.timestamps import TimeUnit

RayAddress = Annotated[
    str,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Use a Ray cluster: its head's HOST:PORT, auto for the one this machine belongs to, or local to "
        "start one here. Needs the extra ray, and files that every node sees at the same path.",
    ),
]


def read_log(
    data: Annotated[
        list[Path], typer.Option("--data", help="Log file or folder; may be given several times.")
    ],
    format: Annotated[
        Format, typer.Option(help="What the log is; auto looks at names and columns.")
    ] = "auto",
    user_column: Annotated[str, typer.Option(help="Column of an event log that names the user.")] = "user_id",
    item_column: Annotated[str, typer.Option(help="Column of an event log that names the item.")] = "item_id",
    timestamp_column: Annotated[
        str, typer.Option(help="Column of an event log with unix times; empty when it has none.")
    ] = "timestamp",
    time_unit: Annotated[
        TimeUnit, typer.Option(help="Of the log's times: seconds or milliseconds.")
    ] = "auto",
    max_bad_share: Annotated[
        float, typer.Option(help="Refuse a log with a larger share of unreadable rows.")
    ] = 0.01,
    skip_impossible_times: Annotated[
        bool,
        typer.Option("--skip-impossible-times", help="Count negative and future times as unreadable rows."),
    ] = False,
    min_interactions: Annotated[int, typer.Option(help="Drop users with fewer interactions.")] = 5,
    max_per_user: Annotated[
        int | None, typer.Option(help="Keep only each user's last N interactions.")
    ] = None,
    duplicates: Annotated[
        Duplicates, typer.Option(help="Which of a user's repeats of an item stay.")
    ] = "keep",
    ray: RayAddress = "",
) -> Interactions:
    """Read the log that the options name."""
    options = ReadOptions(
        format=format,
        user_column=user_column,
        item_column=item_column,
        timestamp_column=timestamp_column,
        time_unit=time_unit,
        max_bad_share=max_bad_share,
        skip_impossible_times=skip_impossible_times,
    )
    rules = Rules(min_interactions=min_interactions, max_per_user=max_per_user, duplicates=duplicates)
    with Console(stderr=True).status("reading the log"):
        if ray:
            with connected(ray) as cluster:
                return read_interactions_on(cluster, data, options=options, rules=rules)
        return read_interactions(data, options=options, rules=rules)


def reads_log(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `read_log`; its parameter `log` is what they read.

    An option that the command has among its own parameters is given to both.
    """
    return _with_log_options(command, "log", lambda **ours: read_log(**ours))


def reads_log_later(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `read_log`; its parameter `read` is a function that reads the log.

    The log's paths are named `--logs`, or `--data` as elsewhere.
    """
    paths = Annotated[
        list[Path],
        typer.Option("--logs", "--data", help="Log file or folder; may be given several times."),
    ]
    return _with_log_options(command, "read", lambda **ours: functools.partial(read_log, **ours), data=paths)


def _with_log_options(
    command: Callable[..., None], name: str, value_of: Callable[..., Any], **changed_hints: Any
) -> Callable[..., None]:
    """`command` with the options of `read_log`, whose parameter `name` is `value_of` what was given."""

    @functools.wraps(command)
    def with_log(**given: Any) -> None:
        ours = {option: given[option] for option in log_parameters}
        given = {option: value for option, value in given.items() if option in own_parameters}
        command(**{name: value_of(**ours)}, **given)

    log_parameters = inspect.signature(read_log).parameters
    own_parameters = inspect.signature(command).parameters
    hints = {
        **typing.get_type_hints(command, include_extras=True),
        **typing.get_type_hints(read_log, include_extras=True),
        **changed_hints,
    }
    with_log.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[option])
            for option, parameter in {**own_parameters, **log_parameters}.items()
            if option != name
        ]
    )
    with_log.__annotations__ = hints
    return with_log
