"""The command: a whole run against a real server, and one line with exit code 2 for bad input."""

from __future__ import annotations

import json
import sys

import pytest

from loadtest import cli
from tests import forked


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["t2diff-loadtest", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        return left.value.code, out, err

    return run


def test_run_writes_a_report_and_prints_the_verdict(server, tmp_path, command):
    options = ["--rate", "20,40", "--duration", "0.5", "--warmup", "0.1", "--users", "5", "--top-k", "7"]
    folder = tmp_path / "out"
    # A limit so wide that only a broken service misses it: this machine may be busy.
    code, out, _ = command(
        "run", "--url", server.url, *options, "--p99-limit-ms", "60000", "--out", str(folder)
    )
    assert code == 0
    report = json.loads((folder / "report.json").read_text())
    assert [probe["asked_rate"] for probe in report["probes"]] == [20, 40]
    assert [probe["num_answers"] for probe in report["probes"]] == [10, 20]
    assert report["settings"]["top_k"] == 7
    assert "p99 2.500 ms against 0.68 ms: over budget by 3.68×" in out
    assert str(folder / "report.md") in out

    (folder / "report.md").unlink()
    assert command("report", str(folder))[0] == 0
    assert (folder / "report.md").exists()
    code, out, _ = command("report", str(folder), "--against", str(folder))
    assert code == 0
    assert "1.00×" in out


def test_a_service_with_keys_is_seeded_and_loaded_by_one_that_no_report_shows(
    server, tmp_path, command, monkeypatch
):
    server.behave(key="t2diff_secret")
    monkeypatch.setattr(cli, "bundle_item_ids", lambda store: ["i1", "i2"])
    load = ["run", "--url", server.url, "--rate", "20", "--duration", "0.5", "--warmup", "0", "--users", "5"]
    load += ["--p99-limit-ms", "60000", "--out", str(tmp_path / "out")]
    code, _, err = command(*load)
    assert code == 2
    assert "takes API keys: name a file" in err
    file = tmp_path / "key"
    file.write_text("t2diff_secret\n")
    with_key = ["--key-file", str(file)]
    assert command("seed", "--url", server.url, "--bundles", "b", "--users", "5", *with_key)[0] == 0
    assert command(*load, *with_key)[0] == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["probes"][0]["num_answers"] == 10
    written = [path for path in (tmp_path / "out").iterdir() if path.suffix != ".png"]
    assert len(written) == 3
    assert not any("t2diff_secret" in path.read_text() for path in written)


@pytest.mark.parametrize("content", [None, b"", b"two\nlines", b"\xff"])
def test_a_file_without_a_key_is_named(server, tmp_path, command, content):
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    code, _, err = command("run", "--url", server.url, "--rate", "1", "--key-file", str(file))
    assert (code, err.count("\n")) == (2, 1)
    assert f"key-file {file}: " in err


def test_run_from_a_fresh_process_finds_the_knee(server, tmp_path):
    options = ["--find-knee", "--start-rate", "20", "--max-rate", "40", "--duration", "0.4", "--warmup", "0"]
    options += ["--p99-limit-ms", "60000", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "loadtest.cli", "run", "--url", server.url, *options]
    done = forked.run(command, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.png").exists()
    assert "held" in done.stderr


def test_seed_and_run_use_the_same_users(server, tmp_path, command):
    log = tmp_path / "events.csv"
    log.write_text("user_id,item_id,timestamp\n" + "".join(f"u,i{n},{1_700_000_000 + n}\n" for n in range(9)))
    code, out, _ = command("seed", "--url", server.url, "--users", "3", "--log", str(log))
    assert code == 0
    assert "3 users, 27 events: loadtest-user-000001 … loadtest-user-000003" in out
    seeded = {event["user_id"] for events in server.seen()["posted"] for event in events}
    options = ["--rate", "50", "--duration", "0.4", "--warmup", "0", "--users", "3", "--out", str(tmp_path)]
    assert command("run", "--url", server.url, *options)[0] == 0
    assert set(server.seen()["users"]) == seeded


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "name either --rate"),
        (["run", "--rate", "5", "--find-knee"], "name either --rate"),
        (["run", "--rate", "fast"], "rate 'fast'"),
        (["run", "--rate", "50,-1"], "rate -1"),
        (["run", "--rate", "nan"], "rate nan"),
        (["run", "--rate", "5", "--duration", "0"], "duration 0"),
        (["run", "--rate", "5", "--arrivals", "uniform"], "arrivals 'uniform'"),
        (["run", "--rate", "5", "--p99-limit-ms", "0"], "p99-limit-ms 0"),
        (["run", "--rate", "5", "--pin-cpu", "9999"], "pin-cpu 9999"),
        (["run", "--rate", "5", "--url", "http://127.0.0.1:1"], "service not reachable"),
        (["run", "--rate", "5", "--url", "http://recall.example.com"], "--allow-remote"),
        (["seed", "--url", "http://recall.example.com", "--log", "x"], "--allow-remote"),
        (["seed"], "name either --log"),
        (["report", "/nowhere"], "no report in /nowhere"),
        (["knee", "--engines", "fast"], "engines: 'fast'"),
        (["knee", "--engines", "floor"], "engines: 'floor' alone"),
        (["knee", "--server-cpus", "9999"], "server-cpus 9999"),
        (["knee", "--server-cpus", "all"], "server-cpus 'all'"),
        (["knee", "--start-rate", "nan"], "rate nan"),
        (["knee", "--items", "100000000000"], "items 100000000000"),
        (["compare", "/nowhere", "/nowhere"], "no figures at /nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(command, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(*arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert out == ""
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_help_names_every_command(command):
    code, out, _ = command("--help")
    assert code == 0
    assert all(name in out for name in ("run", "seed", "report", "knee", "compare"))
