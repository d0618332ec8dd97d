"""Structured logs: one JSON object a line on stderr, written by a thread of its own.

What may stand in a line: time, level, logger, message, and the `extra` fields that the code names
(request id, bundle, route, status, timings). Bodies, sequences, item ids, user ids and credentials are
never passed to a logger; an exception that may quote them, as a KeyError quotes its key, is logged by its
type and the lines of code that it passed, without its text. A reader that stops reading cannot stop the
service: the queue between is bounded and drops.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}
_MAX_WAITING = 10_000
_STOP_TIMEOUT_S = 2.0
_WITH_TEXT = (RuntimeError, OSError, MemoryError)
"""What the system, torch and FAISS raise: an operator needs the text, and no caller's data is in it."""


def start_logging(level: str) -> Callable[[], None]:
    """Route every logger of the process here. Call what is returned at the end: it writes what waits."""
    waiting: queue.Queue[logging.LogRecord] = queue.Queue(_MAX_WAITING)
    target = logging.StreamHandler(sys.stderr)
    target.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [_DroppingHandler(waiting)]
    root.setLevel(level.upper())
    for chatty in ("uvicorn.access", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, root.level))
    listener = logging.handlers.QueueListener(waiting, target)
    listener.start()

    def close() -> None:
        with contextlib.suppress(queue.Full):
            listener.stop()

    def stop() -> None:
        closing = threading.Thread(target=close, daemon=True)
        closing.start()
        closing.join(_STOP_TIMEOUT_S)  # nobody may be reading

    return stop


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update({key: value for key, value in vars(record).items() if key not in _STANDARD})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        elif record.exc_text:
            line["exception"] = record.exc_text
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()

    def formatException(self, ei: Any) -> str:  # noqa: N802  # logging's name for it
        """The frames and the type of an exception and of those that it came from, first cause first."""
        told: list[str] = []
        error: BaseException | None = ei[1]
        while error is not None and len(told) < 10:
            text = f": {error}" if isinstance(error, _WITH_TEXT) else ""
            told.append("".join(traceback.format_tb(error.__traceback__)) + type(error).__name__ + text)
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        return "\nfollowed by\n".join(reversed(told))


class _DroppingHandler(logging.handlers.QueueHandler):
    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record  # formatted by the listener's thread, in the same process

    def enqueue(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(queue.Full):
            self.queue.put_nowait(record)
