"""The option that says where Milvus is, for the commands that build; a token is for the environment alone."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from index_builder.milvus_access import MilvusAccess

MilvusUrl = Annotated[
    str | None,
    typer.Option(
        envvar="T2DIFF_MILVUS_URL",
        metavar="URL",
        help="For index kind milvus: http(s)://host:port/database; a token in T2DIFF_MILVUS_TOKEN.",
    ),
]


def milvus_access(url: str | None) -> MilvusAccess:
    """What the option and the environment say. Raises ValueError for a URL that cannot be used."""
    return dataclasses.replace(MilvusAccess.of_environment(), url=url or None)
