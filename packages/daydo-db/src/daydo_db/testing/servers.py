"""Real servers for tests: found, or started for this run alone."""

from __future__ import annotations

import functools
import getpass
import os
import shutil
import socket
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from daydo_db.config import parse_url
from daydo_db.tx import DialectName
from daydo_kernel import new_id
from daydo_kernel.watchdog import PrivateServer

URLS_VARIABLE = "DAYDO_TEST_MYSQL_URL"
_START_S = 60.0
_LOGS = ("install.log", "server.log")
_HOW_TO_GET = (
    "no mariadbd was found on PATH or in /usr/sbin. Install one (apt-get install mariadb-server-core "
    f"mariadb-client-core), or give a server in {URLS_VARIABLE}=mysql://user:password@host:3306, "
    "or ask for SQLite alone with --embedded"
)


class Backend(msgspec.Struct, frozen=True):
    """A server that tests run on; ``url`` names no database. Empty for SQLite."""

    id: str
    dialect: DialectName
    version: str
    url: str = ""


# A tmpdir of its own: several servers that share one remove each other's temporary tables.
_COMMON = '--no-defaults --user="$user" --datadir="$folder/data" --tmpdir="$folder/tmp" --innodb-log-file-size=8M'
_INSTALL = (
    f"mariadb-install-db {_COMMON} --auth-root-authentication-method=normal --skip-test-db --skip-name-resolve"
    ' >"$folder/install.log" 2>&1'
)
_SERVE = (
    f'{_COMMON} --socket="$folder/sock" --pid-file="$folder/pid" --port="$port" --bind-address=127.0.0.1 '
    "--skip-name-resolve --innodb-buffer-pool-size=32M --innodb-flush-log-at-trx-commit=0 --innodb-doublewrite=OFF "
    "--performance-schema=OFF --max-connections=400 --key-buffer-size=1M --innodb-flush-method=nosync"
)
# A server that was killed comes up again, on the same port and with the same data, until we are told to stop.
_KEEP_UP = f"""trap 'kill $server; wait $server; exit' TERM
while :; do "$program" {_SERVE} "$@" & server=$!; wait $server && exit; done"""


class PrivateMariaDB:
    """A MariaDB of our own on a free port of the loopback, with an empty root password and no durability.

    ``options`` go to the server: ``"--log-bin"``. With ``restarts`` a crash of the server is not its end.
    """

    def __init__(self, program: str, *options: str, restarts: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="daydo-mariadb-"))
        self.port = _free_port()
        # Under the watchdog from its first moment on, so that a kill during the set-up leaves nothing either.
        serve = _KEEP_UP if restarts else f'exec "$program" {_SERVE} "$@"'
        own = 'folder="$1" program="$2" port="$3" user="$4"; shift 4; mkdir "$folder/data" "$folder/tmp"'
        script = f"{own}; {_INSTALL}\n{serve}"
        arguments = ["/bin/sh", "-ec", script, "sh", str(self.folder), program, str(self.port), getpass.getuser()]
        arguments += options
        self._server = PrivateServer(arguments, self.folder)
        self.url = f"mysql://root@127.0.0.1:{self.port}"

    def wait(self) -> str:
        """Wait until it answers; its version.

        Raises:
            RuntimeError: it ended or said nothing for a minute; the message is the end of its log.
        """
        deadline, said = time.monotonic() + _START_S, ""
        while self._server.alive and time.monotonic() < deadline:
            try:
                return _version(self.url)
            except Exception:
                said = self._said() or said  # The watchdog removes the folder with the log in it.
                time.sleep(0.05)
        self.stop()
        raise RuntimeError(f"the private MariaDB did not start: {said or 'it ended at once'}")

    def _said(self) -> str:
        try:
            return "\n".join((self.folder / name).read_text(errors="replace") for name in _LOGS)[-2000:]
        except OSError:
            return ""

    @property
    def pid(self) -> int:
        """The server's own process id (the watchdog stands between it and us)."""
        return int((self.folder / "pid").read_text())

    def stop(self) -> None:
        """Block until server and folder are gone."""
        self._server.stop()


@contextmanager
def fresh_database(backend: Backend, folder: Path) -> Iterator[str]:
    """The URL of an empty database on ``backend``, dropped at the end; SQLite's file is below ``folder``."""
    if backend.dialect == "sqlite":
        yield f"sqlite:///{folder / 'daydo.db'}"
        return
    name = new_id("daydo_test").lower()
    admin(backend.url, f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    try:
        parts = urlsplit(backend.url)
        yield parts._replace(path=f"/{name}").geturl()
    finally:
        admin(backend.url, f"DROP DATABASE {name}")


def find_backends(config: pytest.Config) -> Iterator[Backend]:
    """SQLite, and unless ``--embedded`` the given servers or a private one; ends the run where one is missing."""
    yield Backend("sqlite", "sqlite", f"SQLite {sqlite3.sqlite_version}")
    if not config.option.embedded:
        yield from find_servers(config.add_cleanup)


def find_servers(at_the_end: Callable[[Callable[[], None]], object]) -> Iterator[Backend]:
    """The given servers or a private one, stopped by what ``at_the_end`` is told; ends the run where one is missing."""
    urls = os.environ.get(URLS_VARIABLE, "").split()
    for position, url in enumerate(urls, 1):
        try:
            version = _version(url)
        except Exception as error:
            pytest.exit(f"{URLS_VARIABLE}: {parse_url(url)} does not answer: {error}", returncode=1)
        name = "mariadb" if "MariaDB" in version else "mysql"
        yield Backend(name if len(urls) == 1 else f"{name}{position}", "mysql", version, url)
    if not urls:
        program = shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin")
        if program is None or shutil.which("mariadb-install-db") is None:
            pytest.exit(_HOW_TO_GET, returncode=1)
        server = PrivateMariaDB(program)
        at_the_end(server.stop)
        try:
            version = server.wait()
        except RuntimeError as error:
            pytest.exit(str(error), returncode=1)
        yield Backend("mariadb", "mysql", version, server.url)


def _version(url: str) -> str:
    version = str(admin(url, "SELECT VERSION()"))
    return f"MariaDB {version.split('-', maxsplit=1)[0]}" if "MariaDB" in version else f"MySQL {version}"


def admin(url: str, statement: str) -> object:
    """Run one statement outside any event loop; the first value of its first row, if any."""
    connection = _login(url)
    connection.connect()
    with closing(connection), connection.cursor() as cursor:
        cursor.execute(statement)
        row = cursor.fetchone()
        return row[0] if row else None


@functools.cache
def _login(url: str) -> Any:
    """The driver's connection, not yet open: reading the authorities for TLS, once per object, takes it 30 ms."""
    import pymysql  # type: ignore[import-untyped]  # noqa: PLC0415 - an extra

    location = parse_url(url)
    # A test that left a transaction open must not hang the run when its database is dropped.
    login: dict[str, Any] = {"user": location.user, "password": location.password}
    login["init_command"] = "SET SESSION lock_wait_timeout = 10"
    if location.unix_socket:
        login["unix_socket"] = location.unix_socket
    return pymysql.connect(host=location.host, port=location.port, defer_connect=True, **login)


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
