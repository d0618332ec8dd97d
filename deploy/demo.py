"""The whole job in one go: log → training → bundle → service → `POST /recall`.

Runs the same commands that a person would and prints each before it runs, so that what the demo does
can be repeated by hand. Everything it writes goes to one folder, made anew each time.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
START_TIMEOUT_S = 120


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


class DemoError(Exception):
    """A step did not give what it must."""


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
    _title("a made-up log: users drift through a hidden space of interests, in sessions")
    _run("t2diff-model", "synthesize", work / "log.csv")
    return work / "log.csv"


def _train_and_build(arguments: argparse.Namespace, data: Path, work: Path) -> None:
    _title("offline: train, embed the items, build the index, publish the bundle")
    epochs = arguments.epochs or (1 if arguments.data else 3)
    cap = ["--max-per-user", "200"] if arguments.data else []
    _run(
        *("t2diff-model", "train", "--data", data, "--out", work / "run", "--epochs", epochs, *cap),
        *("--batch-size", "16", "--validation-users", "1000"),
    )
    _run("t2diff-index", "build", work / "run", "--out", work / "bundles")
    _run("t2diff-index", "list", work / "bundles")


# --- online -------------------------------------------------------------------------------------


@contextmanager
def _service(arguments: argparse.Namespace, work: Path) -> Iterator[str]:
    """The service on two free ports, with its embedded Redis; stopped by SIGTERM at the end."""
    _title("online: the service with its own Redis")
    port, admin_port = _free_port(arguments.port), _free_port(arguments.port + 1)
    command = [
        *("t2diff-serve", "--bundles", work / "bundles", "--state-dir", work / "service"),
        *("--port", port, "--admin-port", admin_port),
    ]
    _print_command(command)
    process = subprocess.Popen([str(BIN / command[0]), *map(str, command[1:])])
    url = f"http://127.0.0.1:{port}"
    try:
        _await_ready(url, process)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def _await_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DemoError(f"the service ended with exit code {process.returncode} before it was ready")
        try:
            with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise DemoError(f"the service was not ready within {START_TIMEOUT_S} s")


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

    _title(f"user {log.user_ids[user]}: events go in, candidates come out")
    _post(url, "/events", events, shown=[events[0], "…"])
    answer = _post(url, "/recall", {"user_id": log.user_ids[user], "top_k": 10})
    _expect(answer, route="t2diff")
    recalled = [titles.get(entry["item_id"], entry["item_id"]) for entry in answer["candidates"]]
    _side_by_side("last watched (newest first)", watched[::-1], "recalled", recalled)

    _title("a new user: popular items until there are events")
    newcomer = {"user_id": "newcomer", "top_k": 3}
    _expect(_post(url, "/recall", newcomer), route="popular")
    now = int(time.time())
    some = [
        {**event, "user_id": "newcomer", "timestamp": now - 60 * back}
        for back, event in enumerate(events[-3:])
    ]
    _post(url, "/events", some, shown=[some[0], "…"])
    _expect(_post(url, "/recall", newcomer), route="t2diff")


def _wait_unless(leave: bool, url: str) -> None:
    if leave:
        _title("done: every step worked")
        return
    _title("the service goes on; Ctrl-C ends it")
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


def _post(url: str, path: str, body: Any, shown: Any = None) -> dict[str, Any]:
    text = json.dumps(shown or body, ensure_ascii=False)
    print(f"\n$ curl -s {url}{path} -H 'Content-Type: application/json' -d '{text}'")
    request = urllib.request.Request(
        url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            answer: dict[str, Any] = json.load(response)
            timing = response.headers.get("Server-Timing")
    except urllib.error.HTTPError as error:
        raise DemoError(f"POST {path} answered {error.code}: {error.read().decode()}") from None
    candidates = answer.get("candidates")
    if candidates is None:
        print(f"  {json.dumps(answer)}")
        return answer
    lines = [f"   {json.dumps(entry)}" for entry in candidates[:3]]
    rest = f"\n   … {len(candidates) - 3} more" if len(candidates) > 3 else ""
    head = {key: value for key, value in answer.items() if key != "candidates"}
    print(
        "  "
        + json.dumps(head)
        + "\n"
        + "\n".join(lines)
        + rest
        + (f"\n  Server-Timing: {timing}" if timing else "")
    )
    return answer


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


def _free_port(wanted: int) -> int:
    """`wanted`, or one that the system gives when it is taken."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise DemoError(f"no free port, tried {wanted}")


def _run(command: str, *arguments: object) -> None:
    _print_command([command, *arguments])
    subprocess.run([str(BIN / command), *map(str, arguments)], check=True)


def _print_command(command: list[Any]) -> None:
    print(f"\n$ {shlex.join(map(str, command))}", flush=True)


def _title(text: str) -> None:
    print(f"\n\033[1m== {text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
