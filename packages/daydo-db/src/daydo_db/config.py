"""Where the database is and how it is used."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec
from msgspec import Meta

from daydo_kernel import Config

from .tx import MYSQL, SQLITE, Dialect

Seconds = Annotated[float, Meta(gt=0, le=86_400)]

_WRITE_MYSQL = (
    "database URL: write mysql://user:password@host:3306/name; "
    "in user and password write # / ? @ : [ ] % as %23 %2F %3F %40 %3A %5B %5D %25"
)


class DatabaseConfig(Config, frozen=True, kw_only=True):
    """Bounds of a :class:`daydo_db.Database`; the defaults suit a service of a few workers.

    Attributes:
        pool_max: MySQL connections of this process, at most.
        pool_min: MySQL connections that are kept although nobody needs them, and opened ahead, one by one, a few
            seconds after the start.
        pool_idle_s: an idle connection beyond ``pool_min`` is closed after this.
        pool_lifetime_s: a connection is replaced after this, so that failovers and new credentials arrive.
        pool_ping_s: a connection idle for longer is pinged before it is handed out.
        sqlite_readers: SQLite connections for reads beside the one writer.
        acquire_timeout_s: wait for a connection at most this long, pings and connects included; then
            ``PoolTimeout``, or ``ConnectionLost`` where there was room and the server did not answer.
        connect_timeout_s: for a whole connection set-up (name, TCP, TLS, login, session settings), for a ping, and
            for a goodbye.
        lock_timeout_s: wait for a row, table or file lock at most this long, then ``LockTimeout``.
        statement_timeout_s: a statement that runs longer is killed, then ``QueryTimeout``.
        pipelining: where it was asked for and pays, send a transaction of one packet before the one ahead of it is
            answered; off for a proxy that drops what comes before its turn.
        run_retries: ``run`` repeats a transaction that the server undid this often.
        retry_wait_s: ``run`` waits a random part of this, doubled each time, before it repeats.
        migrate_wait_s: a migration waits for another runner at most this long, then ``LockTimeout``.
        health_timeout_s: ``health()`` answers within this.
        slow_query_s: a statement that takes this long is counted as slow and told of with its plan; 0 turns that off.
        slow_fingerprints_max: that many kinds of slow statements are counted by name, the rest as ``other``.
        slow_queue_max: slow statements that may wait for their plan; beyond that they are only counted.
        slow_explain_every_s: one statement is told of again after this.
        slow_explain_timeout_s: a plan that is not had within this is left out, waiting for a connection included.
        replica_lag_s: a replica further behind than this is not asked.
        replica_beat_s: how often the lag of the replicas is measured; well below ``replica_lag_s``.
        drain_s: leaving waits this long for open transactions.
        cursor_key: signs the cursors of pages; the same in all processes, ``new,old`` while it changes. Empty, a
            cursor is only checked for mistakes: whoever has read the code can make one, for rows he may read anyway.
        tls: speak TLS to MySQL and verify its certificate; a server that offers none is refused.
        tls_ca_file: trust these authorities instead of the system's.
    """

    pool_max: Annotated[int, Meta(ge=1, le=10_000)] = 100
    pool_min: Annotated[int, Meta(ge=0, le=10_000)] = 10
    pool_idle_s: Seconds = 30.0
    pool_lifetime_s: Seconds = 1800.0
    pool_ping_s: Seconds = 5.0
    sqlite_readers: Annotated[int, Meta(ge=1, le=64)] = 4
    acquire_timeout_s: Seconds = 10.0
    connect_timeout_s: Seconds = 5.0
    lock_timeout_s: Annotated[float, Meta(ge=1, le=3600)] = 5.0
    statement_timeout_s: Seconds = 30.0
    pipelining: bool = True
    run_retries: Annotated[int, Meta(ge=0, le=100)] = 3
    retry_wait_s: Annotated[float, Meta(ge=0, le=60)] = 0.02
    migrate_wait_s: Seconds = 600.0
    health_timeout_s: Seconds = 1.0
    slow_query_s: Annotated[float, Meta(ge=0, le=86_400)] = 0.5
    slow_fingerprints_max: Annotated[int, Meta(ge=1, le=900)] = 100
    slow_queue_max: Annotated[int, Meta(ge=1, le=1_000)] = 16
    slow_explain_every_s: Annotated[float, Meta(ge=0, le=86_400)] = 600.0
    slow_explain_timeout_s: Seconds = 2.0
    replica_lag_s: Annotated[float, Meta(gt=0, le=3600)] = 5.0
    replica_beat_s: Annotated[float, Meta(gt=0, le=600)] = 0.5
    drain_s: Annotated[float, Meta(ge=0, le=3600)] = 10.0
    cursor_key: Annotated[str, Meta(max_length=1_000)] = ""
    tls: bool = False
    tls_ca_file: str = ""

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in self.__struct_fields__} | {"cursor_key": "***"}
        return f"DatabaseConfig({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


class Location(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed database URL; printing it shows no password.

    ``path`` is SQLite's file, empty for a private temporary one.
    """

    dialect: Dialect
    path: str = ""
    host: str = ""
    port: int = 3306
    unix_socket: str = ""
    user: str = ""
    password: str = ""
    name: str = ""

    def __str__(self) -> str:
        if self.dialect is SQLITE:
            return f"sqlite:///{self.path}" if self.path else "sqlite://"
        login = f"{self.user}:***@" if self.password else f"{self.user}@" if self.user else ""
        socket = f"?unix_socket={self.unix_socket}" if self.unix_socket else ""
        return f"mysql://{login}{self.host}:{self.port}/{self.name}{socket}"

    __repr__ = __str__


def parse_url(url: str) -> Location:
    """Read ``sqlite:///rel.db``, ``sqlite:////abs.db``, ``sqlite://`` or ``mysql://user:pw@host:3306/name``.

    User, password, name and path are percent-decoded; ``?unix_socket=/path`` goes with ``mysql``.

    Raises:
        ValueError: it is none of these; the message repeats nothing of the URL, which may hold a password.
    """
    scheme = url.partition(":")[0].lower()
    if scheme == "sqlite":
        return _sqlite(url)
    if scheme == "mysql":
        return _mysql(url)
    raise ValueError("database URL: it starts with sqlite:// or mysql://")


def _sqlite(url: str) -> Location:
    parts = urlsplit(url)
    if parts.netloc or parts.query or parts.fragment:
        raise ValueError("database URL: write sqlite:///relative.db or sqlite:////absolute.db, without host or options")
    path = unquote(parts.path.removeprefix("/"))
    if ":memory:" in path:
        raise ValueError(
            "database URL: a database in memory is private to one connection; use sqlite:// (a temporary file)"
        )
    return Location(dialect=SQLITE, path=path)


def _mysql(url: str) -> Location:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:
        # Not its words: they quote what cannot be read, and that may be the rest of a password with a # in it.
        raise ValueError(_WRITE_MYSQL) from None
    unix_socket = query.pop("unix_socket", "")
    name = unquote(parts.path.removeprefix("/"))
    # An @ this late: the login ended too early, at a / # or ? of the password.
    late = "@" in parts.path or "@" in parts.query or parts.fragment
    if late or "/" in name or not (host or unix_socket):
        raise ValueError(_WRITE_MYSQL)
    if query:
        raise ValueError("database URL: of the options only unix_socket is read from the URL")
    return Location(
        dialect=MYSQL,
        host=host or "localhost",
        port=port or 3306,
        unix_socket=unix_socket,
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        name=name,
    )
