"""`t2diff-serve`: answer recall requests from the store's current bundle; `t2diff-serve keys`: API keys."""

from __future__ import annotations

import sys
from functools import partial
from typing import NoReturn

from service.settings import ServiceSettings, SettingsError, load_settings


def main() -> None:
    """Exit code 0 after a clean stop, 2 when the service cannot start."""
    if sys.argv[1:2] == ["keys"]:
        from service.keys_command import main as keys_main

        keys_main(sys.argv[2:])
        return
    try:
        settings = load_settings(sys.argv[1:])
    except SettingsError as error:
        _fail(error)
    _run(settings)


def _run(settings: ServiceSettings) -> None:
    # Imported late: `--help` and a mistyped flag should not wait for torch.
    import asyncio

    import uvloop

    from service.embedded_redis import EmbeddedRedisError
    from service.logs import start_logging
    from service.server import StartError, serve

    stop_logging = start_logging(settings.log_level)
    failure: Exception | None = None
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            reread = None if settings.config is None else partial(load_settings, sys.argv[1:])
            runner.run(serve(settings, announce=_announce, reread=reread))
    except (StartError, EmbeddedRedisError, ValueError) as error:
        failure = error
    finally:
        stop_logging()
    if failure is not None:
        _fail(failure)  # the last line, after what was logged


def _announce(text: str) -> None:
    print(text, flush=True)


def _fail(error: Exception) -> NoReturn:
    print(f"t2diff-serve: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
