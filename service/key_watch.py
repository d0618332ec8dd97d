"""Follows the file of API keys: what it says holds within a second, what is wrong with it changes nothing."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from pathlib import Path

from service.api_keys import ApiKey, ApiKeysError, decode_keys
from service.background import in_daemon_thread
from service.caller_metrics import CallerFamilies
from service.callers import Callers
from service.keys_file import read_keys_file

logger = logging.getLogger("t2diff.keys")
POLL_S = 1.0
"""Of its own: a revoked key must not live on because the store is polled slowly, and a look costs little."""


class KeyWatch:
    """keys: what the file held at the start, then at each change that was not refused"""

    def __init__(self, path: Path) -> None:
        """Reads it. Raises ApiKeysError naming the setting and the file."""
        self._path = path
        self._refused: tuple[bytes | None, str] | None = None
        try:
            self._data = read_keys_file(path)
            self.keys: tuple[ApiKey, ...] = decode_keys(self._data)
        except ApiKeysError as error:
            raise ApiKeysError(f"api_keys: {path}: {error}") from None

    async def poll(self, callers: Callers, metrics: CallerFamilies) -> None:
        """Look every second until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self.check(callers, metrics)
            except Exception:  # nobody could be locked out any more if this ended
                logger.exception("the file of keys could not be looked at")

    async def check(self, callers: Callers, metrics: CallerFamilies) -> None:
        """Look now."""
        data = None
        try:
            data = await in_daemon_thread(partial(read_keys_file, self._path))
            if data == self._data:
                self._refused = None
                return
            keys = decode_keys(data)
        except ApiKeysError as error:
            self._refuse((data, str(error)), metrics)
            return
        self._data, self._refused = data, None
        self.keys = keys
        callers.use(keys)
        metrics.loads["loaded"] += 1
        logger.info("keys loaded", extra=self.summary())

    def summary(self) -> dict[str, int]:
        """How many keys and callers."""
        return {"keys": len(self.keys), "callers": len({key.caller for key in self.keys})}

    def _refuse(self, refused: tuple[bytes | None, str], metrics: CallerFamilies) -> None:
        """Once for each state of the file, not once a second."""
        if refused == self._refused:
            return
        self._refused = refused
        metrics.loads["refused"] += 1
        logger.error("keys refused", extra={"reason": f"{self._path}: {refused[1]}", **self.summary()})
