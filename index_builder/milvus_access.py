"""Where Milvus is and what opens it: what a manifest must not hold, or not decide alone.

`T2DIFF_MILVUS_URL` and `T2DIFF_MILVUS_TOKEN` are to each command of the builder what the variables of AWS are
to a store on S3. The service has settings of the same names, and hands them down.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(frozen=True)
class MilvusAccess:
    """url: in place of the one that a bundle names, None: that one   token: `user:password`, or an API key

    Raises ValueError for a URL that cannot be used.
    """

    url: str | None = None
    token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if self.url is not None:
            check_milvus_url(self.url)

    @classmethod
    def of_environment(cls) -> MilvusAccess:
        """What the variables say."""
        return cls(os.environ.get("T2DIFF_MILVUS_URL") or None, os.environ.get("T2DIFF_MILVUS_TOKEN", ""))


def check_milvus_url(url: str) -> None:
    """Raises ValueError unless `url` is `http[s]://host[:port][/database]`. A file of milvus-lite is refused:

    one process at a time can open it, and a builder, its gates and a service are several.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"milvus_url is not a URL: {error}") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            "milvus_url is kept in the bundle, so it must hold no user or password: set T2DIFF_MILVUS_TOKEN"
        )
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(
            f"milvus_url must be http[s]://host[:port][/database], got {url!r}; for milvus-lite start "
            "`milvus-lite server --data-dir FOLDER --host 127.0.0.1` and give http://127.0.0.1:19530"
        )
    if parts.query or parts.fragment:
        raise ValueError(f"milvus_url must end with the database, got {url!r}: leave out what follows it")
