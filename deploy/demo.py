"""The whole job in one go: log → training → bundle → service → `POST /recall`.

Runs the same commands that a person would and prints each before it runs, so that what the demo does
can be repeated by hand. Everything it writes goes to one folder, made anew each time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steps import BIN, DemoError, await_ready, free_port, post, print_command, run, title


def main() -> int:
    """Exit code 0 when every step worked, 2 for wrong input, otherwise the failing command's."""
    arguments = _arguments()
    work = arguments.work
    if work.exists() and not (work / ".demo").exists():
        print(f"error: work: {work} exists and is not a demo's folder; name another one", file=sys.stderr)
        return 2
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / ".demo").touch()
    try:
        data = arguments.data or _make_log(work)
        _train_and_build(arguments, data, work)
        with _service(arguments, work) as url:
            _show(url, data, arguments)
            _wait_unless(arguments.exit, url)
    except subprocess.CalledProcessError as error:
        print(f"error: the command above ended with exit code {error.returncode}", file=sys.stderr)
        return error.returncode if error.returncode > 0 else 1
    except DemoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--data", type=Path, help="interaction log; a made-up one when left out")
    parser.add_argument(
        "--work", type=Path, default=Path("state/demo"), help="folder for what the demo writes"
    )
    parser.add_argument("--epochs", type=int, help="training epochs (3 on the made-up log, 1 on --data)")
    parser.add_argument("--user", help="user to show; by default one from the middle of the log")
    parser.add_argument("--port", type=int, default=8000, help="the service's port, or the next free one")
    parser.add_argument(
        "--exit", action="store_true", default=os.environ.get("DEMO_EXIT", "") not in ("", "0")
    )
    return parser.parse_args()


# --- offline ------------------------------------------------------------------------------------


def _make_log(work: Path) -> Path:
    title("a made-up log: users drift through a hidden space of interests, in sessions")
    run("t2diff-model", "synthesize", work / "log.csv")
    return work / "log.csv"


def _train_and_build(arguments: argparse.Namespace, data: Path, work: Path) -> None:
    title("offline: train, embed the items, build the index, publish the bundle")
    epochs = arguments.epochs or (1 if arguments.data else 3)
    cap = ["--max-per-user", "200"] if arguments.data else []
    run(
        *("t2diff-model", "train", "--data", data, "--out", work / "run", "--epochs", epochs, *cap),
        *("--batch-size", "16", "--validation-users", "1000"),
    )
    run("t2diff-index", "build", work / "run", "--out", work / "bundles")
    run("t2diff-index", "list", work / "bundles")


# --- online -------------------------------------------------------------------------------------


@contextmanager
def _service(arguments: argparse.Namespace, work: Path) -> Iterator[str]:
    """The service on two free ports, with its embedded Redis; stopped by SIGTERM at the end."""
    title("online: the service with its own Redis")
    port, admin_port = free_port(arguments.port), free_port(arguments.port + 1)
    command = [
        *("t2diff-serve", "--bundles", work / "bundles", "--state-dir", work / "service"),
        *("--port", port, "--admin-port", admin_port),
    ]
    print_command(command)
    process = subprocess.Popen([str(BIN / command[0]), *map(str, command[1:])])
    url = f"http://127.0.0.1:{port}"
    try:
        await_ready(url, process)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def _show(url: str, data: Path, arguments: argparse.Namespace) -> None:
    """A known user, then a new one whose events change the answer's route."""
    from model.data.reader import ReadOptions, read_interactions

    log = read_interactions([data], options=ReadOptions())
    titles = _titles(data)
    user = log.num_users // 2 if arguments.user is None else _index_of(arguments.user, log.user_ids)
    behaviours = log.sequence(user)
    events = [
        {"user_id": log.user_ids[user], "item_id": log.item_ids[item - 1], "timestamp": int(time_)}
        for item, time_ in zip(behaviours.item_index[-50:], behaviours.timestamp[-50:], strict=True)
    ]
    watched = [titles.get(event["item_id"], event["item_id"]) for event in events[-10:]]

    title(f"user {log.user_ids[user]}: events go in, candidates come out")
    post(url, "/events", events, shown=[events[0], "…"])
    answer = post(url, "/recall", {"user_id": log.user_ids[user], "top_k": 10})
    _expect(answer, route="t2diff")
    recalled = [titles.get(entry["item_id"], entry["item_id"]) for entry in answer["candidates"]]
    _side_by_side("last watched (newest first)", watched[::-1], "recalled", recalled)

    title("a new user: popular items until there are events")
    newcomer = {"user_id": "newcomer", "top_k": 3}
    _expect(post(url, "/recall", newcomer), route="popular")
    now = int(time.time())
    some = [
        {**event, "user_id": "newcomer", "timestamp": now - 60 * back}
        for back, event in enumerate(events[-3:])
    ]
    post(url, "/events", some, shown=[some[0], "…"])
    _expect(post(url, "/recall", newcomer), route="t2diff")


def _wait_unless(leave: bool, url: str) -> None:
    if leave:
        title("done: every step worked")
        return
    title("the service goes on; Ctrl-C ends it")
    body = json.dumps({"user_id": "newcomer", "top_k": 5})
    print(f"  curl -s {url}/recall -H 'Content-Type: application/json' -d '{body}'")
    print(f"  API: {url}/docs")
    signal.pause()


# --- pieces -------------------------------------------------------------------------------------


def _titles(data: Path) -> dict[str, str]:
    """Titles by item id where MovieLens's list of movies lies beside the log; nothing elsewhere."""
    folder = data if data.is_dir() else data.parent
    if (folder / "movies.parquet").exists():
        import pyarrow.parquet as pq

        table = pq.read_table(folder / "movies.parquet", columns=["item_id", "title"])
        return {
            str(item): title for item, title in zip(*(column.to_pylist() for column in table), strict=True)
        }
    if (folder / "movies.dat").exists():
        lines = (folder / "movies.dat").read_text(encoding="latin-1").splitlines()
        return {fields[0]: fields[1] for fields in (line.split("::") for line in lines)}
    return {}


def _expect(answer: dict[str, Any], *, route: str) -> None:
    if answer.get("route") != route:
        raise DemoError(f"expected an answer from {route!r}, got route {answer.get('route')!r}")


def _side_by_side(left_title: str, left: list[str], right_title: str, right: list[str]) -> None:
    width = 46
    rows = zip([*left, *[""] * len(right)], [*right, *[""] * len(left)], strict=False)
    print(f"\n  {left_title:{width}}{right_title}\n  {'-' * (width - 2)}  {'-' * (width - 2)}")
    for one, other in list(rows)[: max(len(left), len(right))]:
        print(f"  {one[: width - 2]:{width}}{other}")


def _index_of(user_id: str, user_ids: list[str]) -> int:
    if user_id not in user_ids:
        raise DemoError(f"user: the log has no user {user_id!r} with enough interactions")
    return user_ids.index(user_id)


if __name__ == "__main__":
    sys.exit(main())
