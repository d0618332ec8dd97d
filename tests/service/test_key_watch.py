"""The file of keys is followed while the service runs; what is wrong is told once and changes nothing."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

import service.key_watch
from service.api_keys import ApiKeysError, encode_keys, new_key
from service.caller_metrics import CallerFamilies
from service.callers import Callers
from service.key_watch import KeyWatch

pytestmark = pytest.mark.anyio
FIRST, SECOND = new_key("ranker", ["recall"]), new_key("ranker", ["recall"])
RECALL = frozenset({"recall"})


class Followed:
    """A watch of a file with FIRST's key in it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.write_bytes(encode_keys([FIRST[1]]))
        self.watch = KeyWatch(file)
        self.callers = Callers(self.watch.keys, num_places=10)
        self.metrics = CallerFamilies(CollectorRegistry(), "t2diff")

    async def check(self) -> None:
        await self.watch.check(self.callers, self.metrics)

    def opens(self) -> list[bool]:
        """Whether FIRST and SECOND open anything."""

        def opened(key: str) -> bool:
            try:
                headers = [(b"authorization", b"Bearer " + key.encode())]
                self.callers.admit(headers, RECALL, now=None)
            except Exception:
                return False
            return True

        return [opened(key) for key, _ in (FIRST, SECOND)]


@pytest.fixture
def followed(tmp_path: Path) -> Followed:
    return Followed(tmp_path / "keys")


async def test_a_rotation_while_running(followed: Followed) -> None:
    assert followed.opens() == [True, False]
    followed.file.write_bytes(encode_keys([FIRST[1], SECOND[1]]))
    await followed.check()
    assert followed.opens() == [True, True]
    followed.file.write_bytes(encode_keys([SECOND[1]]))
    await followed.check()
    assert followed.opens() == [False, True]
    followed.file.write_bytes(encode_keys([]))
    await followed.check()
    assert followed.opens() == [False, False]
    assert followed.metrics.loads == {"loaded": 3, "refused": 0}
    assert followed.watch.summary() == {"keys": 0, "callers": 0}


@pytest.mark.parametrize("damage", [b"", b"{", encode_keys([SECOND[1]])[:-30], None])
async def test_a_bad_file_keeps_the_old_keys_and_is_told_once(
    followed: Followed, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    if damage is None:
        followed.file.unlink()
    else:
        followed.file.write_bytes(damage)
    with caplog.at_level(logging.INFO, "t2diff.keys"):
        for _ in range(3):
            await followed.check()
    assert followed.opens() == [True, False]
    assert followed.metrics.loads == {"loaded": 0, "refused": 1}
    (record,) = caplog.records
    assert record.getMessage() == "keys refused"
    assert str(followed.file) in vars(record)["reason"]
    followed.file.write_bytes(encode_keys([SECOND[1]]))
    await followed.check()
    assert followed.opens() == [False, True], "once it is whole again it counts"


async def test_a_file_as_it_was_before_the_damage_is_no_change(followed: Followed) -> None:
    before = followed.file.read_bytes()
    followed.file.write_bytes(b"{")
    await followed.check()
    followed.file.write_bytes(before)
    await followed.check()
    followed.file.write_bytes(b"{")
    await followed.check()
    assert followed.metrics.loads == {"loaded": 0, "refused": 2}


async def test_it_goes_on_looking_whatever_happens(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.key_watch, "POLL_S", 0.01)
    polling = asyncio.create_task(followed.watch.poll(followed.callers, followed.metrics))
    followed.file.unlink()
    followed.file.mkdir()
    await asyncio.sleep(0.05)
    followed.file.rmdir()
    followed.file.write_bytes(encode_keys([SECOND[1]]))
    async with asyncio.timeout(10):
        while followed.opens() != [False, True]:
            await asyncio.sleep(0.01)
    polling.cancel()


def test_a_bad_file_at_the_start_is_named(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    with pytest.raises(ApiKeysError, match=r"^api_keys: .*keys: cannot be read: No such file"):
        KeyWatch(file)
    file.write_text(FIRST[0])
    with pytest.raises(ApiKeysError, match=r"^api_keys: .*keys: its first line") as error:
        KeyWatch(file)
    assert FIRST[0] not in str(error.value)
