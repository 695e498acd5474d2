"""The seam that library SQL is written against: a dialect, a statement, a result, a transaction.

Library statements use ``?`` placeholders and run on every back end and inside a caller's own session. The
rules that make that true: no quoted identifiers, no reserved word as a name, no syntax of one dialect except
through the fragments of :class:`Dialect`; what is decided on is read with ``{dialect.for_update}``.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import compress
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from .errors import StatementFailed

Value = None | bool | int | float | str | bytes
"""What may be a parameter. Times are integers (µs UTC), decimals and dates are text."""

DialectName = Literal["sqlite", "mysql"]


class Dialect(msgspec.Struct, frozen=True):
    """How one family of databases writes what SQL does not agree on; MariaDB counts as ``mysql``.

    Attributes:
        name: also the folder of its schema files.
        now_us: integer expression, the database's time in µs UTC as of the start of the statement
            (whole milliseconds on SQLite). Independent of the session's time zone.
        for_update: put at the end of a SELECT to lock its rows. Empty on SQLite, where a transaction
            holds the one write lock from its BEGIN.
        skip_locked: put after ``for_update`` to pass over rows that others hold:
            ``SELECT … {d.for_update} {d.skip_locked}``.
    """

    name: DialectName
    now_us: str
    for_update: str
    skip_locked: str


SQLITE = Dialect(
    name="sqlite",
    now_us="(CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER) * 1000)",
    for_update="",
    skip_locked="",
)
MYSQL = Dialect(
    name="mysql",
    # UNIX_TIMESTAMP(NOW(6)) would be wrong for an hour each autumn in a session with a summer time.
    now_us="TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))",
    for_update="FOR UPDATE",
    skip_locked="SKIP LOCKED",
)


class Result(msgspec.Struct, frozen=True):
    """What a statement gave back.

    Attributes:
        columns: names, empty for a statement that returns no rows.
        rows: tuples of None, int, float, str, bytes; on MySQL also datetime, date, timedelta and Decimal
            for columns of those types. A DECIMAL without a fraction reads as int, so ``SUM`` of integers
            is an integer everywhere.
        rowcount: rows returned; for a writing statement rows matched, also where nothing changed.
        lastrowid: the AUTO_INCREMENT / rowid given to a one-row INSERT, else 0.
    """

    columns: tuple[str, ...] = ()
    rows: list[tuple[Any, ...]] = []
    rowcount: int = 0
    lastrowid: int = 0


class Tx(Protocol):
    """An open transaction, ours or one that lives in the caller's own session.

    A library call that writes takes one as ``tx=``; then it neither retries nor commits.
    """

    @property
    def dialect(self) -> Dialect: ...

    async def execute(self, sql: str, args: Sequence[Value] = ()) -> Result:
        """Run one statement with ``?`` placeholders.

        Raises:
            DbError: whatever the database said, as one of :mod:`daydo_db.errors`.
            TypeError: the number of arguments is wrong or one is not a :data:`Value`.
            ValueError: a number or text that no database can hold (not finite, beyond 64 bits, half a surrogate).
        """
        ...

    async def execute_all(
        self, statements: Sequence[tuple[str, Sequence[Value]]], *, commit_within_s: float | None = None
    ) -> list[Result]:
        """Run several statements in order, on our own connections in one round trip.

        The first that fails ends it: its error is raised, those behind it are not run, those before it stay done.
        They have ``statement_timeout_s`` together.

        ``commit_within_s`` says that none will follow in the transaction. Then, if all goes well, COMMIT goes with them
        in a transaction of ours, which is a round trip less, and they have so many seconds together. A cancellation
        waits for their answer and then goes on: so register with :meth:`after_commit` before. Whoever lent us theirs
        commits as always, and inside a savepoint nothing is committed.

        Raises:
            StatementFailed: besides the usual, a ``;`` in the text of one, or a CALL, whose results cannot be counted.
            CommitUnknown: they were to be committed, and the answer did not come.
            DbError, TypeError, ValueError: as :meth:`execute`.
        """
        ...

    def after_commit(self, fn: Callable[[], None]) -> None:
        """Call ``fn`` once the transaction has been committed.

        Functions run in order, synchronously, after the connection has been given back; an error in one is
        logged and stops nothing. A rollback, also to a savepoint, drops those registered since.
        """
        ...

    def set_rollback_only(self, because: BaseException) -> None:
        """Say that somebody has left half of something in it, so that it can only be rolled back.

        From now on every statement and COMMIT raises :class:`daydo_db.TransactionAborted`, whose cause is ``because``.
        A rollback to a savepoint does not lift it. The first cause stays, and on one that has ended this does nothing.
        """
        ...


_SIMPLE = frozenset({int, str})
_PLAIN = _SIMPLE | {type(None), bool, bytes}


class Kinds:
    """What the types of some arguments tell of them; found out once for all that are alike.

    Attributes:
        texts: a byte for each argument: 1 where it is a str.
        simple: every one is an int or a str, and of no subclass.
    """

    __slots__ = ("_fields", "_integers", "_plain", "simple", "texts")

    def __init__(self, types: Sequence[type]) -> None:
        self.texts = bytes([kind is str for kind in types])
        self.simple = _SIMPLE.issuperset(types)
        self._integers = bytes([kind is int for kind in types])
        self._fields = struct.Struct(f"{sum(self._integers)}q")
        self._plain = _PLAIN.issuperset(types)

    def hold(self, args: Sequence[Value]) -> bool:
        """Whether ``args``, of these kinds, can be stored as they are: all plain, and no integer beyond 64 bits."""
        try:
            self._fields.pack(*compress(args, self._integers))
        except struct.error:
            return False
        return self._plain


class Statement(NamedTuple):
    """A statement compiled for one dialect.

    Attributes:
        text: what the driver takes: ``?`` for SQLite, ``%s`` with ``%`` doubled for MySQL.
        placeholders: how many arguments it needs.
        verb: its first word in capitals.
        writes: its verb says that it changes data or tables.
        lasts: it changes the connection it runs on beyond itself: ``SET``, ``USE``, a temporary table.
        kinds: those of its arguments, where :func:`bind` has seen them.
    """

    text: str
    placeholders: int
    verb: str
    writes: bool = False
    lasts: bool = False
    kinds: Kinds | None = None


# What is not code is passed over: a question mark in a literal, a quoted name or a comment is no placeholder.
# The dialects differ in backslashes, in `[names]` and in what opens a comment. Double quotes are names (ANSI_QUOTES).
_QUOTED = r"""\"(?:[^\"]|\"\")*\"|`(?:[^`]|``)*`|/\*.*?\*/"""
_TOKENS = {
    "sqlite": re.compile(rf"'(?:[^']|'')*'|{_QUOTED}|\[[^\]]*\]|--[^\n]*|(?P<mark>\?)", re.DOTALL),
    "mysql": re.compile(rf"'(?:[^'\\]|''|\\.)*'|{_QUOTED}|--(?=\s|$)[^\n]*|\#[^\n]*|(?P<mark>\?)", re.DOTALL),
}
# MySQL executes what stands in `/*! … */` and MariaDB what stands in `/*M! … */`.
_VERB = re.compile(r"(?:\s|\(|(?:--|\#)[^\n]*(?:\n|$)|/\*(?!M?!).*?\*/|/\*M?!\d*)*([A-Za-z]*)", re.DOTALL)


_WRITING = frozenset(
    {"INSERT", "UPDATE", "DELETE", "REPLACE", "LOAD", "IMPORT", "CREATE", "ALTER", "DROP", "RENAME", "TRUNCATE"}
    | {"GRANT", "REVOKE", "ANALYZE", "OPTIMIZE", "REPAIR", "VACUUM", "REINDEX"}
)
# IF and below are MariaDB's programs outside a procedure, which may hold any of the others.
_LASTING = {
    "mysql": re.compile(
        r"(?:SET|USE|PREPARE|EXECUTE|DEALLOCATE|HANDLER|IF|CASE|LOOP|REPEAT|WHILE|FOR)\b"
        r"|CREATE\s+(?:OR\s+REPLACE\s+)?TEMPORARY\b|FLUSH\b.*\b(?:LOCK|EXPORT)\b|BACKUP\s+(?:UN)?(?:STAGE|LOCK)\b",
        re.IGNORECASE | re.DOTALL,
    ),
    "sqlite": re.compile(
        r"(?:ATTACH|DETACH)\b|CREATE\s+TEMP(?:ORARY)?\b"
        # A pragma that is given something sets it, but for those that take an argument or write into the file.
        r"|PRAGMA\s+(?:\w+\s*\.\s*)?(?!(?:\w+_(?:list|x?info|check)|wal_checkpoint|optimize|incremental_vacuum"
        r"|user_version|application_id)\b)\w+\s*[=(]",
        re.IGNORECASE,
    ),
}
_INNERMOST = re.compile(r"\([^()]*\)")
_WORD = re.compile(r"\b(?:SELECT|VALUES|TABLE|INSERT|UPDATE|DELETE|REPLACE)\b", re.IGNORECASE)
_CACHED_CHARS = 8192


def compile_statement(dialect: DialectName, sql: str) -> Statement:
    """Compile once per dialect and text; parameters never become part of the text here.

    A text that is long is compiled each time: few come twice, and 4,096 of them would fill the memory.
    """
    return _compile(dialect, sql) if len(sql) > _CACHED_CHARS else _compiled(dialect, sql)


def is_remembered(statement: Statement) -> bool:
    """Whether it is short enough to be kept, and what is made of it."""
    return len(statement.text) <= _CACHED_CHARS


def _compile(dialect: DialectName, sql: str) -> Statement:
    verb = _VERB.match(sql)
    name = verb[1].upper() if verb else ""
    code = sql[verb.start(1) :] if verb else ""
    writes = (_verb_behind_with(dialect, code) if name == "WITH" else name) in _WRITING
    lasts = bool(_LASTING[dialect].match(code))
    marks = [match.span() for match in _TOKENS[dialect].finditer(sql) if match["mark"]]
    if dialect == "sqlite":
        return Statement(sql, len(marks), name, writes, lasts)
    starts, ends = [0, *(end for _, end in marks)], [*(start for start, _ in marks), len(sql)]
    pieces = [sql[start:end].replace("%", "%%") for start, end in zip(starts, ends, strict=True)]
    return Statement("%s".join(pieces), len(marks), name, writes, lasts)


_compiled = lru_cache(maxsize=2048)(_compile)


def _verb_behind_with(dialect: DialectName, code: str) -> str:
    """The verb of a statement that begins with common table expressions, which stand in parentheses."""
    code = _TOKENS[dialect].sub(" ", code)
    while (outer := _INNERMOST.sub(" ", code)) != code:
        code = outer
    word = _WORD.search(code)
    return word[0].upper() if word else ""


_INSTEAD = {
    "SET": "set it for the server or its user, or for one statement: SELECT /*+ SET_VAR(…) */",
    "USE": "write schema.table",
    "PRAGMA": "settings that last belong to the file",
    "CREATE": "write a common table expression, WITH",
}


def require_passing(statement: Statement) -> None:
    """Refuse what would change a connection that others use next.

    Raises:
        StatementFailed: with what to do instead.
    """
    if statement.lasts:
        instead = _INSTEAD.get(statement.verb, "open a connection of your own for it")
        reason = f"{statement.verb} would change the connection for whoever has it next; {instead}"
        raise StatementFailed(reason=reason, statement=statement.text[:200])


def require_single(dialect: DialectName, statement: Statement) -> None:
    """Refuse what would not give exactly one result among those of others.

    Raises:
        StatementFailed: it is several statements, or a CALL.
    """
    if statement.verb == "CALL" or (";" in statement.text and ";" in _TOKENS[dialect].sub(" ", statement.text)):
        reason = "run together, each must be one statement: no semicolon and no CALL"
        raise StatementFailed(reason=reason, statement=statement.text[:200])


_INTEGERS = (-(2**63), 2**63 - 1)


def bind(statement: Statement, args: Sequence[Value]) -> tuple[Statement, tuple[Value, ...]]:
    """The statement for these arguments alone, and they as plain values: enum members and the like become their base.

    Raises:
        TypeError: their number is wrong, or one is not a :data:`Value`.
        ValueError: a float that is not finite, or an integer beyond 64 bits; databases disagree on these.
    """
    if len(args) != statement.placeholders:
        raise TypeError(f"the statement has {statement.placeholders} placeholders and got {len(args)} arguments")
    args = tuple(args)  # What was looked at is what will be sent, whatever becomes of a list meanwhile.
    # Nearly always all is well, which is seen without a step of Python for each of a thousand values.
    bound, kinds = _bound(statement, args)
    if not kinds.hold(args):
        args = tuple(_plain(position, value) for position, value in enumerate(args, 1))
        bound, _ = _bound(statement, args)
    return bound, args


def _bound(statement: Statement, args: tuple[Value, ...]) -> tuple[Statement, Kinds]:
    types = tuple(map(type, args))
    return _with_kinds(statement, types) if is_remembered(statement) else _with_new_kinds(statement, types)


def _with_new_kinds(statement: Statement, types: tuple[type, ...]) -> tuple[Statement, Kinds]:
    kinds = Kinds(types)
    return statement._replace(kinds=kinds), kinds


_with_kinds = lru_cache(maxsize=1024)(_with_new_kinds)


def _plain(position: int, value: object) -> Value:
    if value is None or isinstance(value, bool | bytes):
        return value
    if isinstance(value, int):
        if not _INTEGERS[0] <= value <= _INTEGERS[1]:
            raise ValueError(f"argument {position} is an integer beyond 64 bits")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"argument {position} is {value}; databases store only finite numbers")
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    raise TypeError(
        f"argument {position} is a {type(value).__name__}; pass None, bool, int, float, str or bytes "
        "(times as integer µs UTC, decimals and dates as text)"
    )
