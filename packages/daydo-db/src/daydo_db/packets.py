"""The MySQL protocol between login and goodbye: a command goes out, its answer is read as it arrives.

The driver reads each packet by two awaits and every column definition anew. Here an :class:`Answer` decodes
what has come, in whatever pieces it comes, without any I/O; a :class:`Wire` feeds it from the transport and
wakes the waiting task once, at the end. What a statement's rows look like is remembered by the bytes that said
so: where the same bytes come again they are compared and not read.

A command may be sent before those ahead of it are answered: the server reads one when it has done the one
before, and answers in their order.

The facts are those of MySQL's and MariaDB's protocol documentation, "command phase" and "text protocol": a
packet is 3 bytes of length, 1 of sequence number, and its payload; a payload of 2²⁴ - 1 bytes goes on in the
next packet.
"""

from __future__ import annotations

import asyncio
import math
import struct
from collections import deque
from collections.abc import Callable, Sequence
from datetime import date, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple

from pymysql.constants import FIELD_TYPE  # type: ignore[import-untyped]
from pymysql.converters import convert_date, convert_datetime, convert_timedelta  # type: ignore[import-untyped]
from pymysql.err import InternalError, MySQLError, OperationalError, raise_mysql_exception  # type: ignore[import-untyped]

from .tx import Result

IN_TRANSACTION, AUTOCOMMIT, MORE_RESULTS, NO_BACKSLASH_ESCAPES = 0x0001, 0x0002, 0x0008, 0x0200
QUIT, QUERY, PING = b"\x01", b"\x03", b"\x0e"
# As whole packets.
_SEVERAL_ON, _SEVERAL_OFF = b"\x03\0\0\0\x1b\x00\x00", b"\x03\0\0\0\x1b\x01\x00"

_HEADER = struct.Struct("<I")  # Three bytes of length and one of number.
_LARGEST = 0xFFFFFF
_NULL, _EOF, _ERROR = 0xFB, 0xFE, 0xFF
_WIDTHS = {0xFC: 2, 0xFD: 3, 0xFE: 8}
_BINARY = 63
_LOST = 2013
_SHAPES_MAX = 4096
_SHAPE_BYTES_MAX = 8 * 1024
_CHUNK = 32 * 1024

_Convert = Callable[[bytes], Any]


class Shape(NamedTuple):
    """What the rows of a statement look like; ``block`` is how the server says it, in ``packets`` packets."""

    block: bytes
    packets: int
    columns: tuple[str, ...]
    converters: list[_Convert]


class Shapes:
    """The last shape of each statement, by its text. At most ``_SHAPES_MAX``, then it starts anew.

    What is large is not remembered: a text that long rarely comes again, and would be kept for good.
    """

    def __init__(self) -> None:
        self._of: dict[str, Shape] = {}
        self.get = self._of.get

    def put(self, text: str, shape: Shape) -> None:
        if len(text) + len(shape.block) > _SHAPE_BYTES_MAX:
            return
        if len(self._of) >= _SHAPES_MAX:
            self._of.clear()
        self._of[text] = shape


class Answer:
    """The answer to one command, decoded piece by piece; ``number`` is the sequence number it begins with.

    ``preceded``: the answer to a command without results, sent with this one, comes before it. ``results``: a procedure
    and a text of several statements give more than one; ``status`` is the server's after the last, None where only an
    error came; ``rest`` is what came behind it.
    """

    __slots__ = (
        "_columns",
        "_converters",
        "_head",
        "_missing",
        "_number",
        "_parts",
        "_pieces",
        "_read",
        "_rows",
        "_shapes",
        "_text",
        "_then",
        "_to_come",
        "began_s",
        "done",
        "error",
        "rest",
        "results",
        "status",
    )

    def __init__(self, text: str, shapes: Shapes, number: int = 1, *, preceded: bool = False) -> None:
        self._text, self._shapes = text, shapes
        self._number = 1 if preceded else number
        self._then = number if preceded else None
        self._pieces: list[bytes] = []
        self._missing = 0
        self._parts: list[bytes] = []
        self._read: Callable[[Answer, bytes], None] = Answer._read_head
        self._head: list[bytes] = []
        self._rows: list[tuple[Any, ...]] = []
        self.results: list[Result] = []
        self.error: MySQLError | None = None
        self.status: int | None = None
        self.done = False
        self.rest = b""
        self.began_s = 0.0

    def feed(self, data: bytes) -> bool:
        """Take what has come; True once the answer is complete.

        Raises:
            MySQLError, ValueError, LookupError: this is no answer; nothing more can be said to this server.
        """
        if self._pieces:
            self._pieces.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return False
            data = b"".join(self._pieces)
            self._pieces = []
        at = 0 if self._head or self._number != 1 else self._skip_known(data)
        end = stop = len(data)
        rows = self._open_rows()
        while not self.done and end - at >= 4:
            [header] = _HEADER.unpack_from(data, at)
            at, size = at + 4, header & _LARGEST
            stop = at + size
            if stop > end:
                at -= 4
                break
            if header >> 24 != self._number:
                raise OperationalError(_LOST, "a packet out of order")  # As before a shutdown.
            self._number = (self._number + 1) & 0xFF
            if rows is not None and size < _LARGEST and data[at] < _EOF:
                rows.append(_row(data, at, stop, self._converters))
            else:
                self._take(data[at:stop], size)
                rows = self._open_rows()
            at = stop
        else:
            stop = at + 4
        if self.done:
            self.rest = data[at:]
        elif at != end:
            self._pieces, self._missing = [data[at:]], stop - end
        return self.done

    def _skip_known(self, data: bytes) -> int:
        shape = self._shapes.get(self._text)
        if shape is None or not data.startswith(shape.block):
            return 0
        self._number = (1 + shape.packets) & 0xFF
        self._columns, self._converters = shape.columns, shape.converters
        self._read = Answer._read_columns_end
        return len(shape.block)

    def _open_rows(self) -> list[tuple[Any, ...]] | None:
        """Where the next packet goes if it is a whole row."""
        return self._rows if self._read is Answer._read_row and not self._parts else None

    def _take(self, payload: bytes, size: int) -> None:
        if size == _LARGEST:
            self._parts.append(payload)
            return
        if self._parts:
            payload = b"".join((*self._parts, payload))
            self._parts = []
        self._read(self, payload)

    def _read_head(self, packet: bytes) -> None:
        match packet[0]:
            case 0x00:  # OK
                rowcount, at = _integer(packet, 1)
                lastrowid, at = _integer(packet, at)
                self._end(Result((), [], rowcount, lastrowid), packet[at : at + 2])
            case 0xFF:  # ERR
                self._fail(packet)
            case 0xFB:  # LOCAL INFILE
                raise InternalError(_LOST, "the server asks for a file of ours")
            case 0xFE if len(packet) < 9:  # EOF, which answers an option
                self._end(Result(), packet[3:5])
            case _:  # the number of columns
                self._to_come, _ = _integer(packet, 0)
                self._head = [packet]
                self._read = Answer._read_column

    def _read_column(self, packet: bytes) -> None:
        self._head.append(packet)
        self._to_come -= 1
        if self._to_come:
            return
        columns = [_column(definition) for definition in self._head[1:]]
        self._columns = tuple(name for name, _ in columns)
        self._converters = [convert for _, convert in columns]
        self._read = Answer._read_columns_end
        self._remember()

    def _remember(self) -> None:
        if self._text and not self.results and len(self._head) == self._number - 1:
            block = b"".join(
                len(packet).to_bytes(3, "little") + bytes((number,)) + packet
                for number, packet in enumerate(self._head, 1)
            )
            self._shapes.put(self._text, Shape(block, len(self._head), self._columns, self._converters))

    def _read_columns_end(self, packet: bytes) -> None:
        if packet[0] == _ERROR:
            self._fail(packet)
            return
        if packet[0] != _EOF:
            raise OperationalError(_LOST, "columns without an end")
        self._rows = []
        self._read = Answer._read_row

    def _read_row(self, packet: bytes) -> None:
        rows = self._rows
        # A value of 8 bytes of length also begins with 0xFE, in a packet that is never this short.
        if packet[0] == _ERROR:
            self._fail(packet)
        elif packet[0] == _EOF and len(packet) < 9:
            self._end(Result(self._columns, rows, len(rows)), packet[3:5])
        else:
            rows.append(_row(packet, 0, len(packet), self._converters))

    def _end(self, result: Result, status: bytes) -> None:
        self.status = flags = int.from_bytes(status, "little")
        self._read = Answer._read_head
        if self._then is None:
            self._add(result)
        if not flags & MORE_RESULTS:
            self._complete()

    def _add(self, result: Result) -> None:
        self.results.append(result)

    def _fail(self, packet: bytes) -> None:
        if self._then is not None:
            raise OperationalError(_LOST, "a switch was refused")  # It is not known how what follows is understood.
        try:
            raise_mysql_exception(packet)
        except MySQLError as error:
            if packet[3:4] == b"#":
                error.add_note(f"SQLSTATE {packet[4:9].decode('ascii', 'replace')}")
            self.error = self.error or error
        self._read = Answer._read_head
        self._complete()

    def _complete(self) -> None:
        if self._then is None:
            self.done = True
        else:
            self._number, self._then = self._then, None


class Answers(Answer):
    """The answer to several statements in one text: ``ended_s`` is when each result was there, on the clock ``now_s``.

    ``began_s`` is when the command was sent, or the one ahead of it done. ``error`` is that of the first statement that
    failed, after which the server has carried out no other.
    """

    __slots__ = ("_now_s", "ended_s")

    def __init__(self, shapes: Shapes, now_s: Callable[[], float], number: int = 1, *, preceded: bool = False) -> None:
        super().__init__("", shapes, number, preceded=preceded)
        self._now_s = now_s
        self.ended_s: list[float] = []

    def _add(self, result: Result) -> None:
        super()._add(result)
        self.ended_s.append(self._now_s())


class _Asked(NamedTuple):
    """A command that was sent; within ``timeout_s`` from when it is the first, ``answer`` is to be had."""

    answer: Answer
    answered: asyncio.Future[None]
    timeout_s: float | None


class Wire(asyncio.BufferedProtocol):
    """A connection after its login: commands, carried out in their order, and an answer to each.

    Attributes:
        status: the server's flags as of the last answer.
        lost: nothing can be asked any more.
    """

    def __init__(self, transport: asyncio.WriteTransport, status: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._buffer = memoryview(bytearray(_CHUNK))
        self._asked: deque[_Asked] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._deadline_s = 0.0
        self._gone = asyncio.Event()
        self._takes_several = False
        self.status = status
        self.lost = False
        transport.set_protocol(self)

    async def ask(self, command: bytes, text: str, shapes: Shapes, timeout_s: float | None) -> Result:
        """Send ``command`` and return the answer; ``text`` is the statement it was made of.

        After a cancellation or any error but the server's own the wire is of no use: :meth:`abort` it.

        Raises:
            MySQLError: the server said no (its number and message), or went away (2013).
            TimeoutError: no complete answer within ``timeout_s``; None is no limit. The time that those ahead take does
                not count.
        """
        self._require_there()
        packets, number = _framed(command)
        switch = self._switch(several=False)
        answer = Answer(text, shapes, number, preceded=bool(switch))
        await self._exchange(switch + packets, answer, timeout_s)
        if answer.error is not None:
            raise answer.error
        return answer.results[0]

    async def ask_all(self, texts: bytes, shapes: Shapes, timeout_s: float | None) -> Answers:
        """Send several statements, joined by semicolons, in one packet; the first that fails is the last.

        Errors as in :meth:`ask`, but the server's own about a statement, which is in the answer.
        """
        self._require_there()
        packets, number = _framed(QUERY + texts)
        switch = self._switch(several=True)
        answer = Answers(shapes, self._loop.time, number, preceded=bool(switch))
        await self._exchange(switch + packets, answer, timeout_s)
        return answer

    def _switch(self, *, several: bool) -> bytes:
        """What tells the server, where it does not know yet, to take several statements in one text, or to refuse."""
        if several == self._takes_several:
            return b""
        self._takes_several = several
        return _SEVERAL_ON if several else _SEVERAL_OFF

    def _require_there(self) -> None:
        if self.lost:
            raise OperationalError(_LOST, "the connection is lost")

    async def _exchange(self, packets: bytes, answer: Answer, timeout_s: float | None) -> None:
        answered = self._loop.create_future()
        self._asked.append(_Asked(answer, answered, timeout_s))
        self._transport.write(packets)
        if len(self._asked) == 1:
            self._await_first()
        await answered

    async def quit(self) -> None:
        """Say goodbye and wait until the connection is closed."""
        if not self.lost:
            self.lost = True
            self._transport.write(_framed(QUIT)[0])
        self._transport.close()
        await self._gone.wait()

    def abort(self) -> None:
        """Close it at once, whatever is under way."""
        self.lost = True
        self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(self._buffer[:nbytes])
        while data:
            if not self._asked or self.lost:
                self.abort()  # Nothing was asked. A server says why it goes, then it goes.
                return
            answer = self._asked[0].answer
            try:
                if not answer.feed(data):
                    return
            except Exception as error:
                self.abort()
                self._settle(error)
                return
            if answer.status is not None:  # An error alone does not tell it.
                self.status = answer.status
            data = answer.rest
            self._settle(None)

    def eof_received(self) -> None:
        self.lost = True

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        while self._asked:
            self._settle(OperationalError(_LOST, f"the connection broke ({type(error).__name__})"))
        if self._timer is not None:
            self._timer.cancel()
        self._gone.set()

    def _settle(self, error: BaseException | None) -> None:
        """The first is answered, and the next is the first now."""
        _, answered, _ = self._asked.popleft()
        if not answered.done():
            if error is None:
                answered.set_result(None)
            else:
                answered.set_exception(error)
        if self._asked:
            self._await_first()

    def _await_first(self) -> None:
        answer, _, timeout_s = self._asked[0]
        answer.began_s = self._loop.time()
        # One timer that finds out when it fires whether it still matters: most statements are done long before.
        self._deadline_s = math.inf if timeout_s is None else answer.began_s + timeout_s
        if self._timer is not None and self._timer.when() > self._deadline_s:
            self._timer.cancel()
            self._timer = None
        if self._timer is None and timeout_s is not None:
            self._timer = self._loop.call_at(self._deadline_s, self._expire)

    def _expire(self) -> None:
        self._timer = None
        if not self._asked or self._deadline_s == math.inf:
            return
        if self._loop.time() < self._deadline_s:
            self._timer = self._loop.call_at(self._deadline_s, self._expire)
        else:
            self.abort()  # Else the late answer would be taken for that of the next.
            self._settle(TimeoutError())


def _row(data: bytes, at: int, stop: int, converters: Sequence[_Convert]) -> tuple[Any, ...]:
    """The row that stands in ``data`` from ``at`` to ``stop``."""
    row: list[Any] = []
    for convert in converters:
        size = data[at]
        at += 1
        if size >= _NULL:
            if size == _NULL:
                row.append(None)
                continue
            width = _WIDTHS[size]
            size = int.from_bytes(data[at : at + width], "little")
            at += width
        start, at = at, at + size
        if at > stop:
            break
        row.append(convert(data[start:at]))
    if at != stop:
        raise OperationalError(_LOST, "a row of another length than its packet")
    return tuple(row)


def _framed(command: bytes) -> tuple[bytes, int]:
    """The packet, or as many as it needs, and the sequence number of the answer."""
    if len(command) < _LARGEST:
        return len(command).to_bytes(4, "little") + command, 1
    packets, number = [], 0
    # One byte more, so that a multiple of the largest size ends with an empty packet.
    for start in range(0, len(command) + 1, _LARGEST):
        part = command[start : start + _LARGEST]
        packets += [len(part).to_bytes(3, "little"), bytes((number & 0xFF,)), part]
        number += 1
    return b"".join(packets), number & 0xFF


def _integer(data: bytes, at: int) -> tuple[int, int]:
    """A length-encoded integer and where it ends."""
    if data[at] < _NULL:
        return data[at], at + 1
    stop = at + 1 + _WIDTHS[data[at]]
    return int.from_bytes(data[at + 1 : stop], "little"), stop


@lru_cache(maxsize=4096)
def _column(packet: bytes) -> tuple[str, _Convert]:
    """Its name and how its values are read, from a column definition."""
    at, name = 0, b""
    for field in range(6):  # catalog, schema, table, its own name, name, its own name
        size, at = _integer(packet, at)
        if field == 4:
            name = packet[at : at + size]
        at += size
    charset = int.from_bytes(packet[at + 1 : at + 3], "little")
    kind = packet[at + 7]
    return name.decode(), _converter(kind, charset)


def _converter(kind: int, charset: int) -> _Convert:
    convert = _CONVERTERS.get(kind)
    if convert is not None:
        return convert
    # JSON of a column claims to be binary, JSON of an expression does not; both are UTF-8.
    return bytes if charset == _BINARY and kind != FIELD_TYPE.JSON else bytes.decode


def _decimal(data: bytes) -> Decimal | int:
    # SUM of integers is DECIMAL on MySQL; on SQLite, and to everyone's expectation, it is an integer.
    return Decimal(data.decode()) if b"." in data else int(data)


def _datetime(data: bytes) -> Any:
    text = data.decode()
    try:
        return datetime.fromisoformat(text)
    except ValueError:  # 0000-00-00: the text, as the driver has it.
        return convert_datetime(text)


def _date(data: bytes) -> Any:
    text = data.decode()
    try:
        return date.fromisoformat(text)
    except ValueError:
        return convert_date(text)


_CONVERTERS: dict[int, _Convert] = {
    **dict.fromkeys((FIELD_TYPE.TINY, FIELD_TYPE.SHORT, FIELD_TYPE.INT24, FIELD_TYPE.LONG, FIELD_TYPE.LONGLONG), int),
    FIELD_TYPE.YEAR: int,
    FIELD_TYPE.FLOAT: float,
    FIELD_TYPE.DOUBLE: float,
    FIELD_TYPE.DECIMAL: _decimal,
    FIELD_TYPE.NEWDECIMAL: _decimal,
    FIELD_TYPE.TIMESTAMP: _datetime,
    FIELD_TYPE.DATETIME: _datetime,
    FIELD_TYPE.DATE: _date,
    FIELD_TYPE.TIME: convert_timedelta,
}
