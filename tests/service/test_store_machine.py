"""Whatever is published, rolled back, removed, damaged and killed in whatever order: what is served is whole.

Real stores, a real reloader; a kill is SIGKILL before some file operation of a process that does the step.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from index_builder.bundle_files import BundleError
from index_builder.publish import Store, StoreError
from tests import forked
from tests.service.test_reloader import Loaded
from tests.untrained import build_untrained

STEP = """
import sys
from pathlib import Path
from index_builder.publish import Store
from loadtest.stress.kill_point import kill_before
from tests.service.test_store_machine import add
url, sealed, step, bundle, number = sys.argv[1:]
store = Store(url)
steps = {
    "add": lambda: add(store, Path(sealed) / bundle),
    "publish": lambda: store.publish(bundle),
    "rollback": lambda: store.rollback(),
    "remove": lambda: store.remove([bundle]),
}
kill_before(int(number), under=Path(url))
steps[step]()
"""
WHICH = st.integers(0, 3)


def add(store: Store, sealed: Path) -> None:
    """What a build does at its end."""
    with store.staging() as staging:
        store.add(Path(shutil.copytree(sealed, staging / sealed.name)))


class StoreMachine(RuleBasedStateMachine):
    """A store, the service that follows it, and what both must show."""

    sealed: Path  # four bundles to take from

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="t2diff-store-machine-"))
        self.store = Store(self.folder / "store")
        self.names = sorted(Store(self.sealed).bundle_ids())
        self.damaged: set[str] = set()
        self.loop = asyncio.new_event_loop()
        self.service = Loaded(self.store)

    def teardown(self) -> None:
        self.loop.close()
        shutil.rmtree(self.folder)

    @initialize()
    def first_night(self) -> None:
        add(self.store, self.sealed / self.names[0])
        self.store.publish(self.names[0])

    @rule(which=WHICH)
    def add(self, which: int) -> None:
        if self.names[which] not in self.store.bundle_ids():
            add(self.store, self.sealed / self.names[which])
            self.damaged.discard(self.names[which])
        assert self.names[which] in self.store.bundle_ids()

    @rule(which=WHICH)
    def publish(self, which: int) -> None:
        name, before = self.names[which], self.store.history()
        if name not in self.store.bundle_ids() or name in self.damaged:
            with pytest.raises((StoreError, BundleError)):
                self.store.publish(name)
            assert self.store.history() == before
        else:
            self.store.publish(name)
            assert self.store.history() == (before if before[0] == name else [name, *before])

    @rule()
    def rollback(self) -> None:
        before = self.store.history()
        if len(before) < 2 or before[1] in self.damaged:
            with pytest.raises((StoreError, BundleError)):
                self.store.rollback()
            assert self.store.history() == before
        else:
            assert self.store.rollback() == before[1]
            assert self.store.history() == before[1:]

    @rule(which=WHICH)
    def remove(self, which: int) -> None:
        name, before = self.names[which], self.store.history()
        self.store.remove([name])
        if name in before[:2]:
            assert name in self.store.bundle_ids(), "the served bundle and the one before it stay"
            assert self.store.history() == before
        else:
            assert name not in self.store.bundle_ids()
            assert self.store.history() == [held for held in before if held != name]

    @rule(which=WHICH, data=st.data())
    def damage(self, which: int, data: st.DataObject) -> None:
        """A disk that lies, in a bundle that is not served."""
        name = self.names[which]
        if name not in self.store.bundle_ids() or name == self.store.current():
            return
        path = data.draw(st.sampled_from(sorted((Path(self.store.url) / name).iterdir())))
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.unlink()  # not through a link
        path.write_bytes(content)
        self.damaged.add(name)

    @rule()
    def look(self) -> None:
        """The service looks at the store."""
        current = self.store.current()
        self.loop.run_until_complete(self.service.reloader.check())
        assert self.service.served[-1] == current

    @invariant()
    def what_is_served_is_whole(self) -> None:
        current = self.store.current()
        if current is None:
            return
        self.store.check(current)
        for name in self.store.bundle_ids():
            if name not in self.damaged:
                self.store.check(name)


class KilledStoreMachine(StoreMachine):
    """The same, and any step may be killed."""

    @rule(step=st.sampled_from(["add", "publish", "rollback", "remove"]), which=WHICH)
    def killed(self, step: str, which: int) -> None:
        """Begun again and again, killed before each of its file operations, until it happens."""
        for point in range(1, 40, 5) if step == "add" else range(1, 11):  # adding has many that are alike
            if not self._killed(step, self.names[which], point):
                return

    def _killed(self, step: str, name: str, point: int) -> bool:
        """Whether nothing came of it, and more points may be ahead."""
        before, there = self.store.history(), name in self.store.bundle_ids()
        if step == "add" and there:
            return False
        command = [forked.python(), "-c", STEP, self.store.url, str(self.sealed), step, name, str(point)]
        ended = forked.run(command, timeout=60)
        assert ended.returncode in (0, 1, -signal.SIGKILL), ended.stderr
        done = {
            "add": before,
            "publish": [name, *before],
            "rollback": before[1:],
            "remove": [one for one in before if one != name],
        }
        assert self.store.history() in (before, done[step])
        if step == "add" and name in self.store.bundle_ids():
            self.damaged.discard(name)
        self.what_is_served_is_whole()
        unchanged = (self.store.history(), name in self.store.bundle_ids()) == (before, there)
        return unchanged and ended.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> None:
    built = Store(tmp_path_factory.mktemp("sealed"))
    for seed in range(4):
        build_untrained(built, seed)
    StoreMachine.sealed = Path(built.url)


@pytest.mark.parametrize(
    ("machine", "examples", "steps"), [(StoreMachine, 40, 16), (KilledStoreMachine, 4, 8)]
)
def test_publish_swap_roll_back_remove_damage_and_kill_in_any_order(
    sealed: None, machine: type[StoreMachine], examples: int, steps: int
) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_each_step_killed_at_each_point_happens_or_does_not(sealed: None) -> None:
    machine = KilledStoreMachine()
    machine.first_night()
    machine.killed("add", 1)
    machine.add(1)
    machine.killed("publish", 1)
    machine.publish(1)
    machine.look()
    machine.killed("remove", 0)
    assert machine.names[0] in machine.store.bundle_ids(), "the one before the served one stays"
    machine.killed("rollback", 0)
    assert machine.store.history() == machine.names[:1]
    machine.killed("remove", 1)
    assert machine.names[1] not in machine.store.bundle_ids()
    machine.look()
    machine.teardown()
