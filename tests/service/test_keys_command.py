"""`t2diff-serve keys`: a key is shown once, the file is private and always whole, errors are one line."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.api_keys import KEY_LENGTH, ApiKeysError, KeyRing, new_key
from service.keys_command import main
from service.keys_file import change_keys, read_keys


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    return int(ended.value.code or 0)


def made(capsys: pytest.CaptureFixture[str], file: Path, *arguments: str) -> str:
    """A new key of caller c, as it was printed."""
    capsys.readouterr()
    assert run("new", "--file", str(file), "--caller", "c", *arguments) == 0
    return capsys.readouterr().out.strip()


def test_a_key_is_printed_once_and_works(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--scopes", "recall, events", "--rate", "100", "--burst", "7", "--valid-days", "90"]
    key = made(capsys, file, *arguments)
    assert len(key) == KEY_LENGTH
    (kept,) = read_keys(file)
    assert (kept.caller, kept.scopes, kept.rate, kept.burst) == ("c", ("events", "recall"), 100.0, 7)
    assert kept.expires is not None
    assert (kept.expires - kept.created).days == 90
    assert KeyRing([kept]).find(key.encode())
    assert run("list", "--file", str(file)) == 0
    shown = capsys.readouterr().out
    for text in (kept.key_id, "c ", "events,recall", "100", "7"):
        assert text in shown
    assert key not in shown
    assert kept.sha256 not in shown


def test_only_the_owner_may_read_the_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = os.umask(0)
    try:
        made(capsys, file, "--scopes", "recall")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        file.chmod(0o644)
        made(capsys, file, "--scopes", "recall")
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [entry.name for entry in file.parent.iterdir()] == ["keys"]


def test_a_revoked_key_is_gone_and_the_others_stay(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = (made(capsys, file, "--scopes", "recall") for _ in range(2))
    first, second = read_keys(file)
    assert run("revoke", "--file", str(file), first.key_id) == 0
    assert read_keys(file) == (second,)
    assert run("revoke", "--file", str(file), new) == 0, "by the key itself, too"
    assert new not in "".join(capsys.readouterr())
    assert read_keys(file) == ()
    assert run("revoke", "--file", str(file), old) == 2
    assert old not in "".join(capsys.readouterr())


def test_writers_at_the_same_moment_lose_nothing(file: Path) -> None:
    def add(number: int) -> None:
        _, kept = new_key(f"c{number}", ["recall"])
        change_keys(file, lambda keys: (*keys, kept), create=True)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(60)))
    assert {kept.caller for kept in read_keys(file)} == {f"c{number}" for number in range(60)}


def test_a_link_stays_a_link(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(capsys, file, "--scopes", "recall")
    link = file.with_name("link")
    link.symlink_to(file)
    made(capsys, link, "--scopes", "recall")
    assert link.is_symlink()
    assert len(read_keys(file)) == 2


def test_a_change_that_fails_leaves_the_file_as_it_was(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(capsys, file, "--scopes", "recall")
    before = file.read_bytes()

    def fail(keys: object) -> tuple[()]:
        raise ApiKeysError("no")

    with pytest.raises(ApiKeysError):
        change_keys(file, fail)
    assert file.read_bytes() == before
    assert [entry.name for entry in file.parent.iterdir()] == ["keys"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["new", "--caller", "c", "--scopes", "recal"], "--scopes: there is no scope 'recal'; name some of"),
        (["new", "--caller", "c d", "--scopes", "recall"], "caller: must consist of 1 to 64 letters"),
        (["new", "--caller", "c", "--scopes", "recall", "--rate", "-1"], "rate: must be requests a second"),
        (["new", "--caller", "c", "--scopes", "recall", "--rate", "nan"], "rate: must be requests a second"),
        (
            ["new", "--caller", "c", "--scopes", "recall", "--burst", "5"],
            "--burst: says nothing without --rate",
        ),
        (
            ["new", "--caller", "c", "--scopes", "recall", "--valid-days", "0"],
            "--valid-days: got 0; name days",
        ),
        (["list"], "cannot be read: No such file"),
        (["revoke", "abc"], "there is no such file"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(arguments[0], "--file", str(file), *arguments[1:]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not file.exists()


def test_a_file_that_is_something_else_is_not_overwritten(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text("precious\n")
    assert run("new", "--file", str(file), "--caller", "c", "--scopes", "recall") == 2
    assert "its first line is not that of a file of keys" in capsys.readouterr().err
    assert file.read_text() == "precious\n"


def test_it_is_part_of_the_services_command(file: Path) -> None:
    command = [sys.executable, "-m", "service.cli", "keys"]
    new = [*command, "new", "--file", str(file), "--caller", "c", "--scopes", "admin"]
    ended = subprocess.run(new, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, len(ended.stdout.strip())) == (0, KEY_LENGTH), ended.stderr
    assert "not shown again" in ended.stderr
    refused = subprocess.run([*command, "list"], capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
