"""The store's new and deleted items as the service last read them.

Read with the pointer, decoded only when it changed. One that is damaged is refused, logged and counted, and
the one before it stays in use.
"""

from __future__ import annotations

import logging
import time
from functools import partial

from index_builder.delta import DELTA, EMPTY, Delta, DeltaFile, decode_delta
from service.background import in_daemon_thread
from service.engine import Engine
from service.metrics import Metrics
from service.settings import ServiceSettings

logger = logging.getLogger("t2diff.reload")


class DeltaWatch:
    """delta: what is in use from now on"""

    def __init__(self, settings: ServiceSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._data: bytes | None = None
        self._refused: bytes | None = None
        self._seen = time.monotonic()
        self.delta = EMPTY
        metrics.delta_age.set_function(lambda: time.monotonic() - self._seen)

    async def read(self, *, retry_refused: bool, bundle: str | None) -> str | None:
        """Look at the store; says why when what is there is refused.

        retry_refused: also what was refused before   bundle: the served one, for the log
        """
        data = None
        try:
            data = await in_daemon_thread(lambda: DeltaFile(self._settings.bundles).read_bytes())
            if data != self._data:
                if data is not None and data == self._refused and not retry_refused:
                    return None
                self.delta = await in_daemon_thread(partial(_decoded, data))
                self._data, self._refused = data, None
                self._metrics.count_delta_load("loaded")
            self._seen = time.monotonic()
        except Exception as error:  # whatever is wrong with a delta, the one before it stays in use
            self._refused = data
            return self.refuse(error, bundle=bundle)
        return None

    def refuse(self, error: Exception, *, bundle: str | None) -> str:
        """Log and count a delta that is not used; returns the reason."""
        self._metrics.count_delta_load("refused")
        reason = f"{DELTA} of store {self._settings.bundles} {error}"
        logger.error(
            "delta refused",
            extra={"bundle": bundle, "delta": self.delta.version, "reason": reason},
            exc_info=None if isinstance(error, ValueError | OSError) else error,
        )
        return reason

    async def up_to_date(self, engine: Engine) -> Engine:
        """The engine with the delta that is in use, however long that takes to make."""
        while engine.delta_version != (delta := self.delta).version:
            engine = await in_daemon_thread(partial(engine.with_delta, delta))
        return engine


def _decoded(data: bytes | None) -> Delta:
    return EMPTY if data is None else decode_delta(data)
