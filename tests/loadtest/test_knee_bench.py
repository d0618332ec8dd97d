"""What the knee benchmark makes of its probes, and one run of it against real services."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import psutil
import pytest

from loadtest.core_sharing import slowdown
from loadtest.knee_bench import Measured, knee_figures
from loadtest.knee_report import knee_report
from loadtest.probe import summarise
from loadtest.served import CpuUsed
from tests import forked

RATE = 10.0
RESULTS = Path(__file__).parents[2] / "loadtest" / "results"


@pytest.fixture
def measured(samples):
    """`measured(name, share, cpu, held)`: one probe of 20 requests."""
    probe = summarise(samples(20), rate=RATE, warmup_s=0, duration_s=2)

    def make(name, share=None, cpu=CpuUsed(0.020, 0.002, 0.010, 0.004), held=True):
        return Measured(name=name, share=share, held=held, num_sent=20, cpu=cpu, probe=probe)

    return make


def test_overhead_is_the_process_without_tower_and_search(measured):
    figures = knee_figures({"fused": RATE}, [measured("fused", 70)])
    assert figures["fused_cpu_us_at_70"] == pytest.approx(1000)
    assert figures["fused_redis_us_at_70"] == pytest.approx(100)
    assert figures["fused_overhead_us_at_70"] == pytest.approx(300)


def test_overhead_at_the_knee_is_of_the_held_probes_there(measured):
    much = CpuUsed(0.100, 0.0, 0.0, 0.0)
    probes = [measured("fused"), measured("fused", cpu=much, held=False), measured("eager", cpu=much)]
    figures = knee_figures({"fused": RATE, "eager": RATE}, probes)
    assert figures["overhead_us_per_request_at_knee"] == pytest.approx(300)
    assert knee_figures({"fused": 10 * RATE}, probes)["overhead_us_per_request_at_knee"] is None


def test_ratios_are_of_the_knees_and_missing_ones_are_none(measured):
    knees = {"eager": 100.0, "fused": 400.0, "ddim10": 1000.0}
    figures = knee_figures(knees, [measured("fused", 70)])
    assert figures["knee_rps_fused"] == 400
    assert figures["knee_fused_over_eager"] == pytest.approx(4)
    assert figures["ddim10_over_ddpm50_rps"] == pytest.approx(2.5)
    assert figures["p99_over_p50_at_70"] == pytest.approx(1, rel=0.01)
    assert knee_figures({"eager": 100.0}, [])["knee_fused_over_eager"] is None


def test_the_command_measures_real_services_and_leaves_a_report(tmp_path):
    short = ["--duration", "1", "--warmup", "0.5", "--rounds", "1", "--start-rate", "4", "--max-rate", "4"]
    slow_is_fine = ["--p99-limit-ms", "60000", "--serve-options", "--redis-read-timeout-ms 5000"]
    files = ["--json", str(tmp_path / "f.json"), "--out", str(tmp_path / "out")]
    small = ["--items", "200", "--users", "5", "-k", "7", "--engines", "floor,eager", "--generator-cpus", "0"]
    command = [sys.executable, "-m", "loadtest.cli", "knee", *short, *slow_is_fine, *files, *small]
    done = forked.run(command, timeout=240)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["knee_rps_eager"] == 4
    assert figures["num_items"] == 200
    assert figures["index_bytes"] >= 200 * 64 * 4
    assert figures["eager_rss_less_1_gib_over_index"] == pytest.approx(
        (figures["eager_rss_bytes"] - 2**30) / figures["index_bytes"]
    )
    assert 0 < figures["eager_start_seconds"] < 120
    assert figures["eager_engine"] == "eager"
    assert figures["eager_overhead_us_at_70"] < figures["eager_cpu_us_at_70"]
    assert figures["floor_overhead_us_at_70"] == figures["floor_cpu_us_at_70"]
    assert figures["eager_tower_p50_ms_at_70"] > 0
    assert figures["eager_batch_mean_at_70"] >= 1
    (folder,) = (tmp_path / "out").iterdir()
    assert {file.name for file in folder.iterdir()} == {
        "report.md",
        "report.png",
        "figures.json",
        "probes.json",
    }
    assert json.loads((folder / "figures.json").read_text()) == figures
    assert "GiB: all within 1 GiB" in (folder / "report.md").read_text()


def test_memory_beyond_a_gibibyte_is_shown_as_a_multiple_of_the_index(measured):
    figures = json.loads((RESULTS / "knee-10000000-20261123T124931Z" / "figures.json").read_text())
    report = knee_report(figures, [measured("fused"), measured("eager")])
    assert (
        "- fused: ready after 5.738 s; 3.76 GiB resident after the load, index 2.78 GiB: beyond 1 GiB 0.9909"
        in report
    )
    less = figures | {"fused_rss_less_1_gib_over_index": -0.5}
    assert "GiB: all within 1 GiB" in knee_report(less, [measured("fused"), measured("eager")])


def test_what_kept_a_cpu_busy_is_gone_afterwards():
    before = psutil.Process().children()
    assert slowdown([0], [0]) > 0
    assert set(psutil.Process().children()) <= set(before)
