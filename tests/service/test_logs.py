"""Logs are JSON lines, and a reader that stops reading cannot stop the service."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

from service.logs import JsonFormatter


def test_a_record_is_one_line_of_json_with_its_extra_fields() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        error = sys.exc_info()
    record = logging.makeLogRecord(
        {"name": "t2diff.x", "levelname": "ERROR", "msg": "it %s", "args": ("broke",)}
    )
    record.__dict__.update(exc_info=error, request_id="r", n=1)
    line = JsonFormatter().format(record)
    assert "\n" not in line
    document = json.loads(line)
    assert (document["message"], document["level"], document["request_id"]) == ("it broke", "error", "r")
    assert "ValueError" in document["exception"]
    assert set(document) == {"time", "level", "logger", "message", "request_id", "n", "exception"}


def test_an_exception_is_logged_without_the_data_that_it_quotes() -> None:
    """The lookup that failed, its cause and its consequence; the text of what the system raises stays."""
    data = "5ec" + "ret"  # in two parts: the lines of code are logged

    def fail() -> None:
        try:
            {}[data]
        except KeyError as error:
            try:
                raise ValueError(f"cannot use {data}") from error
            except ValueError as error:
                raise RuntimeError("CUDA out of memory") from error

    try:
        fail()
    except RuntimeError:
        raised = sys.exc_info()
    record = logging.makeLogRecord({"name": "t2diff.x", "levelname": "ERROR", "msg": "it broke"})
    record.__dict__.update(exc_info=raised)
    told = json.loads(JsonFormatter().format(record))["exception"]
    assert "5ecret" not in told
    places = [told.index(name) for name in ("KeyError\n", "ValueError\n", "RuntimeError: CUDA out of memory")]
    assert places == sorted(places)
    assert "in fail" in told


def test_a_reader_that_stops_reading_does_not_stop_the_service() -> None:
    """The pipe of stderr fills up: the program goes on to its end, and what waits is bounded."""
    code = """
import logging, os, sys
from service.logs import start_logging
stop = start_logging("info")
for number in range(30000):
    logging.getLogger("t2diff").info("x" * 200)
waiting = logging.getLogger().handlers[0].queue.qsize()
stop()
print("still running with", waiting, flush=True)
os._exit(0)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    said = process.stdout.readline()
    assert said.startswith("still running with ")
    assert int(said.split()[-1]) <= 10_000
    process.communicate()
    assert process.returncode == 0
