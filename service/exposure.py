"""Who can reach the listeners: a public address is not served to everybody by accident."""

from __future__ import annotations

import ipaddress
import socket

from service.settings import ServiceSettings, environment_variable_of, flag_of


def is_loopback(bound: socket.socket) -> bool:
    """Whether only this machine reaches a bound socket; what was bound counts, not how it was named."""
    return ipaddress.ip_address(bound.getsockname()[0]).is_loopback


def check_exposure(settings: ServiceSettings, listening: dict[str, socket.socket]) -> None:
    """Raises ValueError for a public address without keys, unless that is said to be meant.

    listening: setting -> the socket that it bound
    """
    if settings.api_keys is not None:
        if settings.allow_anonymous:
            raise ValueError("allow_anonymous: contradicts api_keys; leave one of them out")
        return
    public = [name for name, bound in listening.items() if not is_loopback(bound)]
    if public and not settings.allow_anonymous:
        name = public[0]
        where = f"{name} ({flag_of(name)}, {environment_variable_of(name)})"
        raise ValueError(
            f"{where}: {getattr(settings, name)!r} can be reached by others, and there are no API keys; "
            "name a file of them with --api-keys (t2diff-serve keys new makes one), listen on 127.0.0.1, "
            "or say --allow-anonymous true"
        )
