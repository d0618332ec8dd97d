"""Metrics: one prefix, seconds, histograms from a tenth of a millisecond, labels that cannot grow."""

from __future__ import annotations

from typing import Any

import pytest

from service.metrics import STAGES, Metrics

pytestmark = pytest.mark.anyio
SEQUENCE = [{"item_id": f"i{n}", "timestamp": 1_600_000_000 + n} for n in (3, 7, 9)]


def test_every_own_metric_has_the_prefix_and_a_help_text() -> None:
    text = Metrics().exposition().decode()
    families = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    foreign = ("process_", "python_")
    assert all(family.startswith(("t2diff_", *foreign)) for family in families)
    for family in families:
        help_line = next(line for line in text.splitlines() if line.startswith(f"# HELP {family} "))
        assert help_line.split(maxsplit=3)[3]


def test_stages_are_measured_from_a_tenth_of_a_millisecond() -> None:
    metrics = Metrics()
    for stage in STAGES:
        metrics.observe_stage(stage, 0.00005)
        value = metrics.registry.get_sample_value(
            "t2diff_stage_seconds_bucket", {"stage": stage, "le": "0.0001"}
        )
        assert value == 1


async def test_a_batch_is_counted_once_and_its_members_each(start: Any) -> None:
    running = await start()
    requests = [{"user_id": f"u{n}", "sequence": SEQUENCE} for n in range(9)]
    await running.client.post("/recall/batch", json={"requests": requests})

    def value(name: str, **labels: str) -> float | None:
        found: float | None = running.service.metrics.registry.get_sample_value(name, labels)
        return found

    batches = value("t2diff_batch_size_count")
    assert batches is not None
    assert batches < 9
    assert value("t2diff_batch_size_sum") == 9
    assert value("t2diff_stage_seconds_count", stage="tower") == batches
    assert value("t2diff_stage_seconds_count", stage="search") == batches
    assert value("t2diff_stage_seconds_count", stage="queue") == 9
    assert value("t2diff_recalls_total", route="t2diff") == 9


async def test_what_callers_choose_does_not_become_a_label(start: Any) -> None:
    running = await start()
    for number in range(20):
        await running.client.get(f"/made-up-{number}")
        await running.client.post("/recall", json={"user_id": f"made-up-{number}"})
    text = running.service.metrics.exposition().decode()
    assert "made-up" not in text
    assert 't2diff_responses_total{route="other",status="404"} 20.0' in text


async def test_the_server_timing_header_and_the_histogram_are_the_same_measurement(start: Any) -> None:
    running = await start()
    response = await running.client.post("/recall", json={"user_id": "u", "sequence": SEQUENCE})
    shown = dict(
        part.split(";dur=") for part in response.headers["server-timing"].split(", ") if "dur" in part
    )
    for stage in ("queue", "tower", "search", "total"):
        seconds = running.service.metrics.registry.get_sample_value(
            "t2diff_stage_seconds_sum", {"stage": stage}
        )
        assert float(shown[stage]) == pytest.approx(seconds * 1000, abs=0.001)
