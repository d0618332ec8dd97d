"""What `redis_url` may say: a server, the sentinels that know which server is the primary now, or a cluster.

    redis://[[user]:password@]host[:port][/db]      rediss:// for TLS      unix:///path?db=0&password=…
    redis+sentinel://[[user]:password@]host[:port],host[:port]/service[/db]   rediss+sentinel:// for TLS
    redis+cluster://[[user]:password@]host[:port],host[:port]   some of its nodes   rediss+cluster:// for TLS

No message here quotes the URL: it may hold a password.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

SCHEMES = (
    "redis",
    "rediss",
    "unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
)
REDIS_PORT, SENTINEL_PORT = 6379, 26379
_TLS_OPTIONS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname", "ssl_cert_reqs"}
_OPTIONS = {
    "redis": {"db", "username", "password"},
    "rediss": {"db", "username", "password", *_TLS_OPTIONS},
    "unix": {"db", "username", "password"},
    "redis+sentinel": {"sentinel_username", "sentinel_password"},
    "rediss+sentinel": {"sentinel_username", "sentinel_password"},
    "redis+cluster": set(),
    "rediss+cluster": _TLS_OPTIONS,
}
"""What may follow the `?`. Timeouts, retries and pool sizes are settings of their own, so not these."""


class Address(NamedTuple):
    """Where a node of a cluster listens."""

    host: str
    port: int


class SentinelUrl(NamedTuple):
    """Where to ask for the primary of `service`, and how to enter both it and the sentinels."""

    sentinels: list[tuple[str, int]]
    service: str
    db: int
    username: str | None
    password: str | None
    sentinel_username: str | None
    sentinel_password: str | None


def check_url(url: str) -> None:
    """Raises ValueError, with the remedy, for a URL that no connection could be made from."""
    scheme = scheme_of(url)
    if scheme not in SCHEMES:
        known = ", ".join(f"{known}://" for known in SCHEMES[:-1])
        raise ValueError(f"must start with {known} or {SCHEMES[-1]}://")
    unknown = sorted(set(parse_qs(urlsplit(url).query)) - _OPTIONS[scheme])
    if unknown:
        known = ", ".join(sorted(_OPTIONS[scheme])) or "none"
        raise ValueError(f"has the unknown option {unknown[0][:40]!r}; there are {known}")
    if is_sentinel(url):
        parse_sentinel_url(url)
        return
    if is_cluster(url):
        seeds_of(url)
        return
    parts = urlsplit(url)
    try:
        _ = parts.port
    except ValueError:
        raise ValueError("must have a port between 1 and 65535") from None
    if scheme != "unix" and not parts.path.strip("/").isdecimal() and parts.path.strip("/"):
        raise ValueError("must end in the number of a database, such as /0, or in nothing")


def scheme_of(url: str) -> str:
    """`redis`, `rediss`, … in lower case."""
    return url.partition("://")[0].lower()


def is_sentinel(url: str) -> bool:
    """Whether the URL names sentinels in place of a server."""
    return scheme_of(url).endswith("+sentinel")


def is_cluster(url: str) -> bool:
    """Whether the URL names nodes of a Redis Cluster."""
    return scheme_of(url).endswith("+cluster")


def is_tls(url: str) -> bool:
    """Whether connections are encrypted."""
    return scheme_of(url).startswith("rediss")


def shown(url: str) -> str:
    """The URL without its user, password and options."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def parse_sentinel_url(url: str) -> SentinelUrl:
    """Raises ValueError, with the remedy, where sentinels or the service are missing or malformed."""
    parts = urlsplit(url)
    user_info, _, hosts = parts.netloc.rpartition("@")
    username, _, password = (unquote(part) for part in user_info.partition(":"))
    service, _, db = parts.path.strip("/").partition("/")
    if not service:
        raise ValueError("must name the service that the sentinels watch: …://host:26379/SERVICE")
    if db and not db.isdecimal():
        raise ValueError("must end in /SERVICE or /SERVICE/DB, DB being a number")
    options = parse_qs(parts.query)
    return SentinelUrl(
        sentinels=[_host_and_port(host, SENTINEL_PORT, "sentinels") for host in hosts.split(",")],
        service=unquote(service),
        db=int(db or 0),
        username=username or None,
        password=password or None,
        sentinel_username=options.get("sentinel_username", [None])[0],
        sentinel_password=options.get("sentinel_password", [None])[0],
    )


def seeds_of(cluster_url: str) -> list[Address]:
    """The nodes that a cluster's URL names. Raises ValueError, with the remedy, for a malformed one."""
    parts = urlsplit(cluster_url)
    if parts.path.strip("/"):
        raise ValueError("must end after the nodes: a cluster has one database only")
    hosts = parts.netloc.rpartition("@")[2].split(",")
    return [Address(*_host_and_port(host, REDIS_PORT, "nodes")) for host in hosts]


def node_url(cluster_url: str, node: Address) -> str:
    """The URL of one node, entered as the cluster's URL says."""
    parts = urlsplit(cluster_url)
    user_info, at, _ = parts.netloc.rpartition("@")
    host = f"[{node.host}]" if ":" in node.host else node.host
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme.removesuffix('+cluster')}://{user_info}{at}{host}:{node.port}{query}"


def _host_and_port(text: str, port_unless_given: int, what: str) -> tuple[str, int]:
    """`host`, `host:port`, `[::1]:port`"""
    host, colon, port = text.rpartition(":")
    if not colon or port.endswith("]"):
        host, port = text, str(port_unless_given)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise ValueError(f"must list {what} as host:port,host:port, ports between 1 and 65535")
    return host, int(port)
