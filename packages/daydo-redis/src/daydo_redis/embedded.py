"""Redis without installing Redis: for the first hour, for tests, for one process alone.

A private server is the real thing: own folder (0700), unix socket, no port, no persistence; the kernel's
watchdog stops it and removes the folder whatever happens to us. In process it is fakeredis, which needs no
program but answers only this process. Both are empty at the start and gone at the end.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from redis.asyncio import Redis as Client

from daydo_kernel import watchdog

SCHEME = "embedded://"
SWEEP_S = 1.0
WATCH_S = 0.1  # how soon the end of a private server is noticed
_SOCKET_PATH_MAX = 100
# Debian's redis-tools brings no redis-server, but its redis-check-rdb is the same program under another name.
_PROGRAMS = (
    ("redis-server", None),
    ("valkey-server", None),
    ("redis-check-rdb", "redis-server"),
    ("valkey-check-rdb", "valkey-server"),
)
_OTHER_FOLDERS = ("/usr/local/bin", "/usr/bin", "/usr/sbin")  # where servers lie though PATH may not say so
_named_servers: dict[str, Any] = {}


def choose(url: str) -> str:
    """``server`` or ``memory``, whichever ``url`` asks for or this machine has.

    Raises:
        ValueError: the URL names neither.
    """
    kind, _, name = url.removeprefix(SCHEME).partition("/")
    if kind not in ("", "server", "memory") or (name and kind != "memory"):
        raise ValueError("Redis URL: say embedded://, embedded://server, embedded://memory or embedded://memory/NAME")
    return kind or ("server" if find_program() else "memory")


def find_program() -> tuple[str, str | None] | None:
    """The path of a Redis or Valkey server, and the name to call it by if that is not its own."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_OTHER_FOLDERS))
    for program, argv0 in _PROGRAMS:
        if found := shutil.which(program, path=path):
            return found, argv0
    return None


class PrivateRedis:
    """A Redis server of our own, reachable by ``url``. The constructor launches it, :meth:`wait_ready` waits.

    ``arguments`` are added to its command line, ``("--port", "6400")`` for one.

    Raises:
        RuntimeError: there is no such program on this machine.
    """

    def __init__(self, arguments: Sequence[str] = ()) -> None:
        found = find_program()
        if found is None:
            raise RuntimeError(
                "no redis-server or valkey-server found; install one (Debian: apt install redis-server or "
                "redis-tools) or use embedded://memory"
            )
        program, self._argv0 = found
        folder = _private_folder()
        self._socket = folder / "redis.sock"
        self._pid_file = folder / "redis.pid"
        self.url = f"unix://{quote(str(self._socket))}"
        settings = {
            "--port": "0",
            "--unixsocket": str(self._socket),
            "--unixsocketperm": "700",
            "--dir": str(folder),
            "--pidfile": str(self._pid_file),
            "--save": "",
            "--appendonly": "no",
            "--daemonize": "no",
        }
        words = [word for setting in settings.items() for word in setting]
        self._command = [program, *words, *arguments]
        self._launch(folder)

    def _launch(self, folder: Path) -> None:
        self._process = watchdog.PrivateServer(self._command, folder, self._argv0)
        # Opened now: the watchdog removes the folder, and with it the reason why a server ended.
        self._log = self._process.log.open(errors="replace")

    @property
    def folder(self) -> Path:
        return self._process.folder

    @property
    def alive(self) -> bool:
        """False once the server has ended and its folder is gone."""
        return self._process.alive

    @property
    def pid(self) -> int:
        """The server's own process id (the watchdog stands between it and us); known once it is ready."""
        return int(self._pid_file.read_text())

    def wait_ready(self, timeout_s: float) -> None:
        """Block until the server answers.

        Raises:
            RuntimeError: it ended or took too long; the message holds the end of its log.
        """
        until_s = time.monotonic() + timeout_s
        while not self._answers():
            if not self._process.alive or time.monotonic() > until_s:
                raise RuntimeError(f"the private Redis did not come up: {self._log.read()[-1000:].strip()}")
            time.sleep(0.01)

    def start_again(self, timeout_s: float) -> None:
        """After its end: an empty server in the same place. Blocks until it answers.

        Raises:
            OSError: the place is taken.
            RuntimeError: as :meth:`wait_ready`.
        """
        folder = self.folder
        self.stop()
        folder.mkdir(mode=0o700)  # and never one that somebody else has put there meanwhile
        self._launch(folder)
        self.wait_ready(timeout_s)

    def stop(self) -> None:
        """Block until server and folder are gone."""
        self._process.stop()
        self._log.close()

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(1.0)
                probe.connect(str(self._socket))
                probe.sendall(b"PING\r\n")
                return probe.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def _private_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="daydo-redis-"))
    if len(str(folder)) + len("/redis.sock") <= _SOCKET_PATH_MAX:
        return folder
    # The kernel takes socket paths of some 100 bytes; a deep TMPDIR is longer.
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="daydo-redis-", dir="/tmp"))


def memory_client(url: str, pool_size: int) -> Client:
    """A client of an in-process server: a new one, or the one of that name.

    Raises:
        RuntimeError: fakeredis, or the Lua it needs for scripts, is not installed.
    """
    if not has_memory():
        raise RuntimeError("embedded://memory needs fakeredis with Lua: pip install 'daydo-redis[embedded]'")
    import fakeredis  # noqa: PLC0415 (an extra)

    name = url.removeprefix(SCHEME).partition("/")[2]
    server = _named_servers.get(name) or fakeredis.FakeServer(version=(7,))
    if name:
        _named_servers[name] = server
    return fakeredis.FakeAsyncRedis(server=server, max_connections=pool_size, protocol=2)


def has_memory() -> bool:
    """Whether the extra ``embedded`` is installed."""
    return all(importlib.util.find_spec(module) for module in ("fakeredis", "lupa"))


def forget_memory(url: str) -> None:
    """Let go of the data under ``embedded://memory/NAME``."""
    _named_servers.pop(url.removeprefix(SCHEME).partition("/")[2], None)
