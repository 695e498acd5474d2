"""Pages of a long list by keyset: every page costs the same, however deep, and none repeats or skips a row.

A page goes on *after the last row that was shown*, never at row number 10,000, so rows that come and go elsewhere
do not move it. The position travels in a cursor: opaque to clients, and signed together with the list's name and
scope, so that one user's cursor says nothing in another user's list.

Three facts of the servers, found by counting the rows they read, decide how the condition is written:

- MySQL and MariaDB read ``(a, b) < (?, ?)`` from the index's end; ``a < ? OR (a = ? AND b < ?)`` is two ranges.
  SQLite does the opposite: the row value is a range, the OR a scan.
- MariaDB prefers a look-up of ``tenant = ?`` to a range that starts with the same column, and then walks there from
  the newest row. Written as a range of one value it has no such choice, and needs the column in ORDER BY. MySQL
  gives up the index for exactly that text. So each gets its own, by their executable comments.
- MySQL scans no range of a mixed index backwards; see :class:`Keyset` for the index it needs.
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from daydo_kernel import BadRequest, FieldError

from .database import Database
from .errors import CursorInvalid
from .tx import SQLITE, Dialect, Tx, Value, compile_statement

T = TypeVar("T")

CURSOR_CHARS_MAX = 8_192
_SIGNATURE_BYTES = 12
_COLUMN = re.compile(r"((?:[A-Za-z_]\w*\.)?([A-Za-z_]\w*))(?: (ASC|DESC))?")
_MARK = ":page"

KeyValue = int | str | bytes
"""No float: MySQL prints a FLOAT shorter than it is kept, and no row would be found again at the value it showed."""


class Cursors(Generic[T]):
    """Positions in a list as opaque, signed text; for lists whose position is more than a :class:`Keyset` knows.

    Args:
        name: of the list; a cursor of another one is refused.
        position: the type of a position, anything msgspec reads and writes.
        key: secret, shared by all processes that answer for the list (``DatabaseConfig.cursor_key``). ``new,old``
            signs with the first and accepts both. Empty, the signature only tells mistakes, not forgeries.
    """

    def __init__(self, name: str, position: type[T], *, key: str) -> None:
        self._name = name
        self._keys = [part.encode() for part in key.split(",")]
        self._decoder = msgspec.msgpack.Decoder(position)

    def seal(self, position: T, scope: Sequence[Value] = ()) -> str:
        """
        Raises:
            ValueError: the position is too long for a cursor.
        """
        body = msgspec.msgpack.encode(position)
        cursor = _text(self._sign(self._keys[0], body, scope) + body)
        if len(cursor) > CURSOR_CHARS_MAX:
            raise ValueError(f"{self._name}: a cursor has at most {CURSOR_CHARS_MAX} characters, not {len(cursor)}")
        return cursor

    def open(self, cursor: str, scope: Sequence[Value] = ()) -> T:
        """
        Raises:
            CursorInvalid: it is not exactly one that ``seal`` gave for this list, scope and key.
        """
        try:
            if len(cursor) > CURSOR_CHARS_MAX:
                raise ValueError("too long")
            sealed = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
            signature, body = sealed[:_SIGNATURE_BYTES], sealed[_SIGNATURE_BYTES:]
            signed = [hmac.compare_digest(signature, self._sign(key, body, scope)) for key in self._keys]
            # Base64 has several spellings of the same bytes; a cursor has one.
            if not any(signed) or _text(sealed) != cursor:
                raise ValueError("not ours")
            return self._decoder.decode(body)
        except (ValueError, RecursionError):  # also binascii's, msgspec's and the text codec's
            raise invalid_cursor() from None

    def _sign(self, key: bytes, body: bytes, scope: Sequence[Value]) -> bytes:
        # The first part ends where msgpack says it ends, so no two pairs of (scope, body) read the same.
        signed = msgspec.msgpack.encode((self._name, tuple(scope))) + body
        return hmac.digest(key, signed, "sha256")[:_SIGNATURE_BYTES]


class Slice(msgspec.Struct, Generic[T], frozen=True):
    """A page: rows in the list's order, whichever way it was walked.

    Attributes:
        rows: at most ``limit``. Empty where all rows beyond the cursor have gone since it was given out.
        next_cursor: of the page after this one, None where there is none.
        previous_cursor: of the page before, None on the first.
    """

    rows: list[T]
    next_cursor: str | None = None
    previous_cursor: str | None = None


class _Column(NamedTuple):
    expression: str
    name: str
    descending: bool

    def direction(self, back: bool) -> str:
        return "DESC" if self.descending != back else "ASC"

    def beyond(self, back: bool) -> str:
        return "<" if self.descending != back else ">"


class _Position(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Beyond ``values``: after them, or before (``back``); ``inclusive`` where they themselves come first."""

    back: bool
    inclusive: bool
    # Of KeyValue, which msgspec cannot tell: it takes no union of str and bytes. Keyset looks at each.
    values: tuple[Any, ...]


class Keyset:
    """The order of a list, and everything that follows from it: conditions, cursors, pages.

        RECENT = Keyset("created_at_us DESC", "id DESC", within=["tenant"], name="notes", key=db.config.cursor_key)
        page = await RECENT.page(db, "SELECT id, body, created_at_us FROM note WHERE :page", within=[tenant])

    Args:
        columns: the sort key, ``column`` or ``alias.column``, each with ``DESC`` or not. Together they are unique and
            none is NULL; values are int, str or bytes, never float. The rows of a page have them under these names.
        within: columns whose value is the same in the whole list (the owner); they begin the index and are signed.
            Values as those of ``columns``.
        name: of the list, see :class:`Cursors`.
        key: see :class:`Cursors`; usually ``db.config.cursor_key``.
        limit_max: rows of a page, at most.

    No page scans or sorts with an index on ``within`` and then ``columns``: all ascending where the columns agree in
    direction, else with the directions given here. Mixed directions cost more: SQLite also reads the rows that share
    the cursor's first value, and MySQL needs a second index, the directions reversed, to walk back.
    """

    def __init__(self, *columns: str, within: Sequence[str] = (), name: str, key: str, limit_max: int = 100) -> None:
        if not columns:
            raise ValueError("a keyset has at least one column, the last one unique")
        self._columns = [_column(text) for text in columns]
        self._within = [_column(text) for text in within]
        self._uniform = len({column.descending for column in self._columns}) == 1
        self._name = name
        self._limit_max = limit_max
        self._cursors = Cursors(f"{name} {self._within} {self._columns}", _Position, key=key)

    async def page(
        self,
        where: Database | Tx,
        select: str,
        args: Sequence[Value] = (),
        *,
        within: Sequence[KeyValue] = (),
        scope: Sequence[Value] = (),
        cursor: str | None = None,
        limit: int = 50,
    ) -> Slice[tuple[Any, ...]]:
        """The page at ``cursor``, None being the first, in one statement.

        Args:
            select: a statement that ends its WHERE with ``:page``, which becomes conditions, ORDER BY and LIMIT:
                ``SELECT id, body FROM note WHERE state = ? AND :page``.
            args: for its placeholders.
            within: the values of the ``within`` columns.
            scope: what else the list was narrowed by (the ``state`` above): a cursor is only good for the same.

        Raises:
            CursorInvalid: ``cursor`` was not given out for this list and scope.
            BadRequest: ``limit`` is not between 1 and ``limit_max``.
            TypeError: a value of ``within`` or of a sort column is not int, str or bytes.
            DbError: as :meth:`Tx.execute`.
        """
        cut = self.cut(where.dialect, within=within, scope=scope, cursor=cursor, limit=limit)
        head, mark, tail = select.partition(_MARK)
        if not mark:
            raise ValueError(f"{self._name}: the SELECT needs {_MARK} where its WHERE ends")
        before = compile_statement(where.dialect.name, head).placeholders
        sql, args = f"{head}{cut.sql}{tail}", [*args[:before], *cut.args, *args[before:]]
        result = await (where.query(sql, args) if isinstance(where, Database) else where.execute(sql, args))
        places = [self._place(result.columns, column.name) for column in self._columns]
        # Also where all is one page: a list must not begin to fail on the day it grows.
        for row in result.rows[:1]:
            for column, place in zip(self._columns, places, strict=True):
                self._require_key(column, row[place])
        rows = result.rows[::-1] if cut.back else result.rows
        return cut.slice(rows, lambda row: [row[place] for place in places])

    def cut(
        self,
        dialect: Dialect,
        *,
        within: Sequence[KeyValue] = (),
        scope: Sequence[Value] = (),
        cursor: str | None = None,
        limit: int = 50,
    ) -> Cut:
        """The parts of :meth:`page`, for a statement that needs them elsewhere: in a subquery that is joined.

        Raises:
            CursorInvalid, BadRequest, TypeError: as :meth:`page`.
        """
        check_limit(limit, self._limit_max)
        if len(within) != len(self._within):
            raise ValueError(f"{self._name}: within has {len(self._within)} values")
        for column, value in zip(self._within, within, strict=True):
            self._require_key(column, value)
        scope = [*within, *scope]
        position = None if cursor is None else self._open(cursor, scope)
        back = position is not None and position.back
        conditions, args = self._constants(dialect, within)
        if position is not None:
            conditions.append(self._beyond(dialect, position))
            args += self._arguments(dialect, position)
        sql = f"{' AND '.join(conditions) or 'TRUE'} ORDER BY {self._order(dialect, back)} LIMIT ?"
        return Cut(sql, [*args, limit + 1], limit, position, lambda to: self._seal(to, scope))

    def _constants(self, dialect: Dialect, within: Sequence[Value]) -> tuple[list[str], list[Value]]:
        names = [column.expression for column in self._within]
        if dialect is SQLITE:
            return [f"{name} = ?" for name in names], [*within]
        low, high = "/*!80000 = */ /*M! >= */ ?", "/*!80000 = */ /*M! <= */ ?"
        return [f"{name} {low} AND {name} {high}" for name in names], [value for value in within for _ in range(2)]

    def _order(self, dialect: Dialect, back: bool) -> str:
        order = ", ".join(f"{column.expression} {column.direction(back)}" for column in self._columns)
        if dialect is SQLITE or not self._within:
            return order
        # The direction in which the index is read; where they are mixed it was made for walking forward.
        direction = self._columns[0].direction(back) if self._uniform else "DESC" if back else "ASC"
        return f"/*M! {', '.join(f'{column.expression} {direction}' for column in self._within)}, */ {order}"

    def _beyond(self, dialect: Dialect, position: _Position) -> str:
        last = "=" if position.inclusive else ""
        if dialect is SQLITE and self._uniform and len(self._columns) > 1:
            names = ", ".join(column.expression for column in self._columns)
            marks = ", ".join("?" * len(self._columns))
            return f"({names}) {self._columns[0].beyond(position.back)}{last} ({marks})"
        *first, (name, _, _) = self._columns
        condition = f"{name} {self._columns[-1].beyond(position.back)}{last} ?"
        for column in reversed(first):
            name, beyond = column.expression, column.beyond(position.back)
            condition = f"({name} {beyond} ? OR ({name} = ? AND {condition}))"
            if dialect is SQLITE:
                condition = f"({name} {beyond}= ? AND {condition})"
        return condition

    def _arguments(self, dialect: Dialect, position: _Position) -> list[Value]:
        first, last = position.values[:-1], position.values[-1]
        if dialect is SQLITE and self._uniform:
            return [*position.values]
        return [*(value for value in first for _ in range(3 if dialect is SQLITE else 2)), last]

    def _open(self, cursor: str, scope: Sequence[Value]) -> _Position:
        position = self._cursors.open(cursor, scope)
        # With an empty key anybody can sign; what a database would stumble over ends here all the same.
        if len(position.values) != len(self._columns) or not all(map(_can_be_key, position.values)):
            raise invalid_cursor()
        return position

    def _seal(self, position: _Position, scope: Sequence[Value]) -> str:
        for column, value in zip(self._columns, position.values, strict=True):
            self._require_key(column, value)
        return self._cursors.seal(position, scope)

    def _require_key(self, column: _Column, value: object) -> None:
        if not _can_be_key(value):
            raise TypeError(f"{self._name}: {column.name} is a {type(value).__name__}; a key is int, str or bytes")

    def _place(self, columns: Sequence[str], name: str) -> int:
        if columns.count(name) != 1:
            raise ValueError(f"{self._name}: select {name} once, cursors are made of it")
        return columns.index(name)


class Cut:
    """Where a page begins, as SQL; made by :meth:`Keyset.cut`.

    Attributes:
        sql: conditions, ORDER BY and LIMIT, to stand after ``WHERE`` or ``AND``. It finds one row more than the page
            has, and where ``back`` is true in reverse order.
        args: for its placeholders.
        back: whether the page lies before its cursor.
    """

    def __init__(
        self, sql: str, args: list[Value], limit: int, position: _Position | None, seal: Callable[[_Position], str]
    ) -> None:
        self.sql = sql
        self.args = args
        self.back = position is not None and position.back
        self._limit = limit
        self._position = position
        self._seal = seal

    def slice(self, found: Sequence[T], key: Callable[[T], Sequence[KeyValue]]) -> Slice[T]:
        """The page out of all that was found, given in the list's order; ``key`` are an item's sort columns."""
        more = len(found) > self._limit
        rows = list(found[-self._limit :] if self.back else found[: self._limit])
        if not rows:
            return self._around_nothing()
        before = more if self.back else self._position is not None
        after = more or self.back
        return Slice(
            rows,
            next_cursor=self._seal(_Position(False, False, tuple(key(rows[-1])))) if after else None,
            previous_cursor=self._seal(_Position(True, False, tuple(key(rows[0])))) if before else None,
        )

    def _around_nothing(self) -> Slice[Any]:
        """The way back from where there is nothing left begins with the cursor's own row, if that is there."""
        if self._position is None:
            return Slice([])
        turned = self._seal(_Position(not self.back, not self._position.inclusive, self._position.values))
        return Slice([], next_cursor=turned) if self.back else Slice([], previous_cursor=turned)


def check_limit(limit: int, most: int = 100) -> int:
    """``limit``, where it is one. Refused and not trimmed: who asks for 500 would take 100 for all there is.

    Raises:
        BadRequest: it is not between 1 and ``most``, or no whole number.
    """
    if type(limit) is not int or not 1 <= limit <= most:
        raise BadRequest(fields=(FieldError("limit", f"须为 1 到 {most}", f"Must be from 1 to {most}"),))
    return limit


def invalid_cursor() -> CursorInvalid:
    """The error for a cursor of any kind; it names the field."""
    field = FieldError("cursor", "游标无效，请从第一页重新开始", "Is not valid; start from the first page")
    return CursorInvalid(fields=(field,))


def _can_be_key(value: object) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and -(2**63) <= value < 2**63
    return isinstance(value, str | bytes)


def _column(text: str) -> _Column:
    found = _COLUMN.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is not `column`, `alias.column`, or one of these with DESC")
    return _Column(found[1], found[2], found[3] == "DESC")


def _text(sealed: bytes) -> str:
    return urlsafe_b64encode(sealed).decode().rstrip("=")
