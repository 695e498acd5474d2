"""Real servers for tests: found, or started for this run alone."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from daydo_kernel import new_id
from daydo_kernel.watchdog import PrivateServer

from daydo_db.config import parse_url
from daydo_db.tx import DialectName

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
_COMMON = '--no-defaults --user="$4" --datadir="$1/data" --tmpdir="$1/tmp" --innodb-log-file-size=8M'
_INSTALL = (
    f"mariadb-install-db {_COMMON} --auth-root-authentication-method=normal --skip-test-db --skip-name-resolve"
    ' >"$1/install.log" 2>&1'
)
_SERVE = (
    f'{_COMMON} --socket="$1/sock" --pid-file="$1/pid" --port="$3" --bind-address=127.0.0.1 --skip-name-resolve '
    "--innodb-buffer-pool-size=32M --innodb-flush-log-at-trx-commit=0 --innodb-doublewrite=OFF --skip-log-bin "
    "--performance-schema=OFF --max-connections=400 --key-buffer-size=1M --innodb-flush-method=nosync"
)


class PrivateMariaDB:
    """A MariaDB of our own on a free port of the loopback, with an empty root password and no durability."""

    def __init__(self, program: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="daydo-mariadb-"))
        self.port = _free_port()
        # Under the watchdog from its first moment on, so that a kill during the set-up leaves nothing either.
        script = f'mkdir "$1/data" "$1/tmp" && {_INSTALL} && exec "$2" {_SERVE}'
        arguments = ["/bin/sh", "-ec", script, "sh", str(self.folder), program, str(self.port), getpass.getuser()]
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

    def stop(self) -> None:
        self._server.stop()


@contextmanager
def fresh_database(backend: Backend, folder: Path) -> Iterator[str]:
    """The URL of an empty database on ``backend``, dropped at the end; SQLite's file is below ``folder``."""
    if backend.dialect == "sqlite":
        yield f"sqlite:///{folder / 'daydo.db'}"
        return
    name = new_id("daydo_test").lower()
    _admin(backend.url, f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    try:
        parts = urlsplit(backend.url)
        yield parts._replace(path=f"/{name}").geturl()
    finally:
        _admin(backend.url, f"DROP DATABASE {name}")


def find_backends(config: pytest.Config) -> Iterator[Backend]:
    """SQLite, and unless ``--embedded`` the given servers or a private one; ends the run where one is missing."""
    yield Backend("sqlite", "sqlite", f"SQLite {sqlite3.sqlite_version}")
    if config.option.embedded:
        return
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
        config.add_cleanup(server.stop)
        try:
            version = server.wait()
        except RuntimeError as error:
            pytest.exit(str(error), returncode=1)
        yield Backend("mariadb", "mysql", version, server.url)


def _version(url: str) -> str:
    version = str(_admin(url, "SELECT VERSION()"))
    return f"MariaDB {version.split('-', maxsplit=1)[0]}" if "MariaDB" in version else f"MySQL {version}"


def _admin(url: str, statement: str) -> object:
    """Run one statement outside any event loop; the first value of its first row, if any."""
    import pymysql  # type: ignore[import-untyped]  # noqa: PLC0415 - an extra

    location = parse_url(url)
    # A test that left a transaction open must not hang the run when its database is dropped.
    login: dict[str, Any] = {"user": location.user, "password": location.password}
    login["init_command"] = "SET SESSION lock_wait_timeout = 10"
    if location.unix_socket:
        login["unix_socket"] = location.unix_socket
    with (
        closing(pymysql.connect(host=location.host, port=location.port, **login)) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(statement)
        row = cursor.fetchone()
        return row[0] if row else None


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
