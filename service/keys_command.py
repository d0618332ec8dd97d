"""`t2diff-serve keys`: make, list and revoke API keys. A running service follows the file within a second."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from service.api_keys import MAX_KEYS, SCOPES, ApiKey, ApiKeysError, key_id_of, new_key
from service.keys_file import change_keys, read_keys

app = typer.Typer(
    help="API keys: who may ask the service for what, and how often.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
File = Annotated[Path, typer.Option("--file", help="File of keys, as in the service's --api-keys.")]


@app.command()
def new(
    file: File,
    caller: Annotated[str, typer.Option(help="Whose key; keys of one caller share its rate.")],
    scopes: Annotated[str, typer.Option(help=f"What for, of {', '.join(SCOPES)}; commas between.")],
    rate: Annotated[
        float | None, typer.Option(help="Requests a second; without it no limit.", show_default=False)
    ] = None,
    burst: Annotated[
        int | None, typer.Option(help="Requests at once; without it one second's.", show_default=False)
    ] = None,
    valid_days: Annotated[
        float | None, typer.Option(help="Expires after this; without it never.", show_default=False)
    ] = None,
) -> None:
    """Make a key and print it, this once; the file, made where there is none, keeps its hash."""
    wanted = [scope.strip() for scope in scopes.split(",")]
    unknown = [scope for scope in wanted if scope not in SCOPES]
    if unknown:
        raise ApiKeysError(f"--scopes: there is no scope {unknown[0]!r}; name some of {', '.join(SCOPES)}")
    if burst is not None and rate is None:
        raise ApiKeysError("--burst: says nothing without --rate; add it or leave both out")
    if valid_days is not None and not 0 < valid_days <= 36_500:
        raise ApiKeysError(f"--valid-days: got {valid_days:g}; name days above 0 and at most 36500")
    expires = None if valid_days is None else _now() + timedelta(days=valid_days)
    key, kept = new_key(caller, sorted(set(wanted)), rate=rate, burst=burst, expires=expires)

    def add(keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        if len(keys) >= MAX_KEYS:
            raise ApiKeysError(f"{file} holds {MAX_KEYS} keys already; revoke those that are not used")
        return (*keys, kept)

    change_keys(file, add, create=True)
    typer.echo(key)
    typer.echo(f"key {kept.key_id} of {caller} is in {file}; it is not shown again", err=True)


@app.command("list")
def list_keys(file: File) -> None:
    """The keys of a file, oldest first, without what opens anything."""
    rows = [("key", "caller", "scopes", "rate", "burst", "created", "expires")]
    for key in read_keys(file):
        expires = "never" if key.expires is None else _shown(key.expires)
        rows.append(
            (
                key.key_id,
                key.caller,
                ",".join(key.scopes),
                "-" if key.rate is None else f"{key.rate:g}",
                "-" if key.rate is None else f"{key.effective_burst:g}",
                _shown(key.created),
                f"{expires} (over)" if key.expired(_now()) else expires,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@app.command()
def revoke(
    file: File,
    keys: Annotated[list[str], typer.Argument(help="Ids as `list` shows them.", metavar="KEY…")],
) -> None:
    """Take keys out of the file: they open nothing within a second."""
    revoked = {key_id_of(given) for given in keys}

    def remove(kept: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        missing = revoked - {key.key_id for key in kept}
        if missing:
            raise ApiKeysError(
                f"{file} has {len(missing)} of these keys not; t2diff-serve keys list shows them"
            )
        return tuple(key for key in kept if key.key_id not in revoked)

    change_keys(file, remove)
    typer.echo(f"revoked: {', '.join(sorted(revoked))}", err=True)


def main(arguments: Sequence[str]) -> None:
    """Exit code 0 when done, 2 with one line when refused."""
    try:
        app(args=list(arguments), prog_name="t2diff-serve keys")
    except ApiKeysError as error:
        print(f"t2diff-serve keys: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _shown(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%MZ")
