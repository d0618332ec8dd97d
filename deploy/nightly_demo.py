"""Three nights in a few minutes: build, refuse a bad build, swap in a good one, while requests flow.

A made-up log arrives in three parts. Night 1 trains from scratch; night 2 goes on from it with a learning
rate a hundred times too high, as a typing error would have it, and a gate refuses the result; night 3 goes
on from night 1, and items that nobody had consumed before are recalled. A service answers all the while.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from steps import BIN, DemoError, await_ready, free_port, print_command, run, title

HOURS_APART = 8
"""Between two nights of the demo, so that the newest behaviours of each are less than a day old."""
NUM_RELEASED = 20
"""Items that nobody consumed before night 3."""
MODEL = {"embedding_dim": 32, "num_steps": 10, "max_length": 20}
REQUESTS_PER_SECOND = 20


def main() -> int:
    """Exit code 0 when every night ended as it must."""
    arguments = _arguments()
    work: Path = arguments.work
    if work.exists() and not (work / ".demo").exists():
        print(f"error: work: {work} exists and is not a demo's folder; name another one", file=sys.stderr)
        return 2
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / ".demo").touch()
    began = time.monotonic()
    try:
        nights = _Nights(work, arguments)
        title("night 1: a first model, trained from scratch")
        nights.deliver(1)
        first = nights.build(expected="published")
        with _service(work, arguments.port) as url, _traffic(url, nights.known_sequences()) as traffic:
            title("night 2: somebody typed --learning-rate 0.2 for 2e-3; the gates are asked")
            nights.deliver(2)
            refused = nights.build("--learning-rate", "0.2", expected="refused")
            if not refused.get("refused_by"):
                raise DemoError(f"not a gate but the build ended it: {refused}")
            print(
                f"\n  refused by {', '.join(refused['refused_by'])}; "
                f"the service still answers from {first['bundle']}"
            )
            title("night 3: the same with the right learning rate, and new items in the log")
            nights.deliver(3)
            third = nights.build(expected="published")
            traffic.await_bundle(third["bundle"])
            _show_new_items(url, nights)
            title("roll back, and forward again, while requests flow")
            run("t2diff-index", "rollback", work / "bundles")
            traffic.await_bundle(first["bundle"])
            run("t2diff-index", "publish", work / "bundles", third["bundle"])
            traffic.await_bundle(third["bundle"])
        run("t2diff-index", "list", work / "bundles")
        _conclude(traffic, [first["bundle"], third["bundle"]], time.monotonic() - began)
    except subprocess.CalledProcessError as error:
        print(f"error: the command above ended with exit code {error.returncode}", file=sys.stderr)
        return 1
    except DemoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nightly-demo", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("state/nightly-demo"), help="folder to write to")
    parser.add_argument("--users", type=int, default=1_500, help="users of the made-up log")
    parser.add_argument("--items", type=int, default=400, help="items of the made-up log")
    parser.add_argument("--epochs", type=int, default=5, help="of the first night; the others take 2")
    parser.add_argument("--port", type=int, default=8000, help="the service's port, or the next free one")
    return parser.parse_args()


# --- nights -------------------------------------------------------------------------------------


class _Nights:
    """The log as it arrives, and the nightly job on what is there."""

    def __init__(self, work: Path, arguments: argparse.Namespace) -> None:
        from model.data.synthetic import generate_drift_log

        self.work, self.arguments = work, arguments
        self.log = generate_drift_log(num_users=arguments.users, num_items=arguments.items, seed=7)
        now = int(time.time())
        self.until = now
        self.ends = [now - HOURS_APART * 3600 * back for back in (2, 1, 0)]
        self.released = {self.log.item_ids[item] for item in range(NUM_RELEASED)}
        too_early = (self.log.item < NUM_RELEASED) & (self.log.timestamp < self.ends[1])
        self.kept = ~too_early
        (work / "logs").mkdir()

    def deliver(self, night: int) -> None:
        """Let the part of the log between the last night and this one arrive."""
        from model.data.event_log import write_event_log

        self.until = self.ends[night - 1]
        rows = self.kept & (self.log.timestamp < self.until)
        if night > 1:
            rows &= self.log.timestamp >= self.ends[night - 2]
        path = self.work / "logs" / f"night-{night}.csv"
        write_event_log(
            path,
            user_id=np.array(self.log.user_ids, dtype=object)[self.log.user[rows]],
            item_id=np.array(self.log.item_ids, dtype=object)[self.log.item[rows]],
            timestamp=self.log.timestamp[rows],
        )
        print(f"\n  {int(rows.sum()):,} interactions arrive in {path}")

    def build(self, *options: str, expected: str) -> dict[str, Any]:
        """Run the nightly job; returns its summary. Raises DemoError when it ends otherwise than expected."""
        command = [
            *("t2diff-index", "nightly", "--logs", str(self.work / "logs")),
            *("--store", str(self.work / "bundles"), "--work", str(self.work / "job"), "--history", "200"),
            *("--until", str(self.until), "--epochs", str(self.arguments.epochs), "--later-epochs", "2"),
            *(text for name, value in MODEL.items() for text in ("--set", f"{name}={value}")),
            *options,
        ]
        print_command(command)
        job = subprocess.run(
            [str(BIN / command[0]), *command[1:]], stdout=subprocess.PIPE, text=True, check=False
        )
        print(f"{job.stdout.rstrip()}\n  exit status {job.returncode}", flush=True)
        try:
            summary: dict[str, Any] = json.loads(job.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            raise DemoError(
                f"the nightly job ended with exit status {job.returncode} and no summary"
            ) from None
        if summary["outcome"] != expected:
            raise DemoError(f"the night ended as {summary['outcome']!r}, expected {expected!r}")
        return summary

    def known_sequences(self) -> list[list[dict[str, Any]]]:
        """The latest behaviours of some users."""
        users = np.linspace(0, len(self.log.user_ids) - 1, 200).astype(int)
        return [self._latest(self.log.user == user) for user in users]

    def fans(self) -> list[list[dict[str, Any]]]:
        """Behaviours of users up to the moment at which each consumed a new item."""
        rows = np.flatnonzero(self.kept & (self.log.item < NUM_RELEASED))[-50:]
        return [
            self._latest((self.log.user == self.log.user[row]) & (np.arange(len(self.log.user)) < row))
            for row in rows.tolist()
        ]

    def _latest(self, rows: np.ndarray) -> list[dict[str, Any]]:
        chosen = np.flatnonzero(rows & self.kept)[-20:]
        return [
            {"item_id": self.log.item_ids[self.log.item[row]], "timestamp": int(self.log.timestamp[row])}
            for row in chosen.tolist()
        ]


# --- the service --------------------------------------------------------------------------------


@contextmanager
def _service(work: Path, wanted_port: int) -> Iterator[str]:
    """The service, watching the store; stopped by SIGTERM at the end."""
    title("a service starts on night 1's bundle; requests flow from here on")
    port, admin_port = free_port(wanted_port), free_port(wanted_port + 1)
    command = [
        *("t2diff-serve", "--bundles", str(work / "bundles"), "--state-dir", str(work / "service")),
        *("--port", str(port), "--admin-port", str(admin_port), "--reload-poll-s", "0.5"),
    ]
    print_command(command)
    process = subprocess.Popen([str(BIN / command[0]), *command[1:]])
    url = f"http://127.0.0.1:{port}"
    try:
        await_ready(url, process)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


@dataclass
class _Traffic:
    """A steady stream of requests, and what came back."""

    url: str
    sequences: list[list[dict[str, Any]]]
    statuses: Counter[int] = field(default_factory=Counter)
    bundles: list[str] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def flow(self) -> None:
        number = 0
        while not self.stopped.wait(1 / REQUESTS_PER_SECOND):
            sequence = self.sequences[number % len(self.sequences)]
            status, answer = _ask(self.url, f"user-{number}", sequence, top_k=20)
            self.statuses[status] += 1
            bundle = answer.get("bundle", "none")
            if not self.bundles or self.bundles[-1] != bundle:
                self.bundles.append(bundle)
                print(f"  >> request {number}: answered {status} by {bundle}", flush=True)
            number += 1

    def await_bundle(self, bundle_id: str) -> None:
        deadline = time.monotonic() + 60
        while self.bundles[-1:] != [bundle_id]:
            if time.monotonic() > deadline:
                raise DemoError(f"the service did not answer from {bundle_id} within a minute")
            time.sleep(0.1)


@contextmanager
def _traffic(url: str, sequences: list[list[dict[str, Any]]]) -> Iterator[_Traffic]:
    traffic = _Traffic(url, [sequence for sequence in sequences if sequence])
    thread = threading.Thread(target=traffic.flow)
    thread.start()
    try:
        yield traffic
    finally:
        traffic.stopped.set()
        thread.join()


def _ask(url: str, user_id: str, sequence: list[dict[str, Any]], *, top_k: int) -> tuple[int, dict[str, Any]]:
    body = {"user_id": user_id, "top_k": top_k, "sequence": sequence}
    request = urllib.request.Request(
        f"{url}/recall", json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, {}
    except OSError:
        return 0, {}


def _show_new_items(url: str, nights: _Nights) -> None:
    """Users who came to like a new item, as they were just before: is one recalled for them now?"""
    found: Counter[str] = Counter()
    asked = [sequence for sequence in nights.fans() if sequence]
    recalled_for = 0
    for number, sequence in enumerate(asked):
        answer = _ask(url, f"fan-{number}", sequence, top_k=20)[1]
        new = [c["item_id"] for c in answer.get("candidates", []) if c["item_id"] in nights.released]
        found.update(new)
        recalled_for += bool(new)
    print(f"\n  {len(found)} items that night 1 did not know are now among the first 20")
    print(f"  for {recalled_for} of {len(asked)} users, as they were before consuming one of them")
    if not found:
        raise DemoError("no new item is recalled for anybody")


def _conclude(traffic: _Traffic, bundles: list[str], seconds: float) -> None:
    total = traffic.statuses.total()
    title(f"done in {seconds:.0f} s: {total} requests, {total - traffic.statuses[200]} not answered with 200")
    print(f"  answered by {' → '.join(traffic.bundles)}")
    first, third = bundles
    if set(traffic.statuses) != {200} or traffic.bundles != [first, third, first, third]:
        raise DemoError(f"expected only 200 and the bundles {first} and {third} in turn: {traffic.statuses}")


if __name__ == "__main__":
    sys.exit(main())
