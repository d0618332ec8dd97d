"""`t2diff-index sign`: sign a bundle that was built without a key; and the option that names the key file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from index_builder.publish import Store
from index_builder.signature import read_keys

SignatureKey = Annotated[
    Path | None,
    typer.Option(
        envvar="T2DIFF_SIGNATURE_KEY",
        help="Key file: sign what is built, and refuse to publish what is not signed with it.",
    ),
]


def sign(
    store: Annotated[str, typer.Argument(help="Bundle store: a folder or an fsspec URL.", metavar="STORE")],
    bundle: Annotated[str, typer.Argument(help="Bundle id.")],
    signature_key: SignatureKey = None,
) -> None:
    """Sign a bundle of the store; do so only if you know where it comes from."""
    Store(store, keys=read_keys(signature_key)).sign(bundle)
    print(f"signed {bundle}")
