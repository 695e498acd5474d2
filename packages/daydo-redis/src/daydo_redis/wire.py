"""Commands to bytes, bytes to answers: RESP2 as we speak it below the driver's ``execute_command``.

The driver connects and logs in. For as long as a packet is answered its transport speaks to us: what comes is read
where it arrives, without a stream and the half dozen coroutines around it, and a task wakes up once for a whole packet.
A connection that speaks something else (RESP3, or fakeredis in process) is read through the driver's
``read_response``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import redis.exceptions as driver
from redis.asyncio.connection import AbstractConnection, DefaultParser

Argument = str | bytes | int | float

ASKING = b"*1\r\n$6\r\nASKING\r\n"
_PIECE_BYTES = 4_096
_TEXT, _NUMBER, _ARRAY, _STATUS, _ERROR = b"$:*+-"
_SMALL = 1_024
_SIZES = [b"$%d\r\n" % size for size in range(_SMALL)]
_SIZE_OF = {head[:-2]: size for size, head in enumerate(_SIZES)}
# What the driver knows for connections of its cluster client only.
_CLUSTER_ERRORS: dict[str, Callable[[str], driver.RedisError]] = {
    "ASK": driver.AskError,
    "CLUSTERDOWN": driver.ClusterDownError,
    "CROSSSLOT": driver.ClusterCrossSlotError,
    "MASTERDOWN": driver.MasterDownError,
    "MOVED": driver.MovedError,
    "TRYAGAIN": driver.TryAgainError,
}
_SAID_NO = (driver.BusyLoadingError, driver.AuthenticationError, driver.AuthorizationError)


def pack(words: Sequence[Argument]) -> bytes:
    """One command as the server reads it; text is UTF-8.

    Raises:
        TypeError: a word is neither text, bytes nor a number. (bool is refused: ``True`` would arrive as text.)
    """
    parts = [_head(len(words), words[0])]
    for word in words[1:]:
        raw = word.encode() if isinstance(word, str) else word if isinstance(word, bytes) else _text_of(word)
        size = len(raw)
        # Joined once: no value is copied twice.
        parts += (_SIZES[size] if size < _SMALL else b"$%d\r\n" % size, raw, b"\r\n")
    return b"".join(parts)


@lru_cache(maxsize=1024, typed=True)
def _head(count: int, name: Argument) -> bytes:
    """The first word of a command of ``count``; there are few of them."""
    raw = name.encode() if isinstance(name, str) else name if isinstance(name, bytes) else _text_of(name)
    return b"*%d\r\n$%d\r\n%b\r\n" % (count, len(raw), raw)


def _text_of(word: object) -> bytes:
    if isinstance(word, int) and not isinstance(word, bool):
        return b"%d" % word
    if isinstance(word, float):
        return repr(word).encode()
    if isinstance(word, bytearray | memoryview):
        return bytes(word)
    raise TypeError(f"Redis takes text, bytes and numbers, not {type(word).__name__}")


def pieces(packets: Iterable[bytes]) -> Iterator[list[bytes]]:
    """What to hand to the socket at a time, in order: the server carries out the first piece while the second is on
    its way, and the callers of the first go on while it carries out the second.
    """
    piece: list[bytes] = []
    size = 0
    for packet in packets:
        piece.append(packet)
        size += len(packet)
        if size >= _PIECE_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def text(word: Argument) -> str:
    """``word`` for messages and comparisons."""
    return word.decode(errors="replace") if isinstance(word, bytes) else str(word)


def exchange(
    connection: AbstractConnection, packets: Sequence[bytes], count: int, take: Callable[[Any], None]
) -> Awaitable[None]:
    """Send ``packets`` now, and give each of the ``count`` answers to ``take`` as it comes; an error answer is given,
    not raised. Who does not wait for the end closes the connection.

    Raises (when awaited):
        driver.ConnectionError, OSError: the connection ended before the last answer did.
        driver.InvalidResponse: what came is no answer of Redis, or one too many.
    """
    transport = transport_of(connection)
    if transport is not None and connection.protocol in (2, "2"):
        return _Exchange(transport, packets, count, take).done
    return _through_driver(connection, packets, count, take)


async def _through_driver(
    connection: AbstractConnection, packets: Sequence[bytes], count: int, take: Callable[[Any], None]
) -> None:
    await connection.send_packed_command(packets, check_health=False)
    for _ in range(count):
        try:
            answer = await connection.read_response(disable_decoding=True)
        except _SAID_NO as error:
            answer = error
        except (driver.ConnectionError, driver.TimeoutError):
            raise
        except driver.RedisError as error:
            answer = error
        take(answer)


def is_stale(connection: AbstractConnection) -> bool:
    """Whether this idle connection has ended; then nothing must be sent on it."""
    stream, transport = getattr(connection, "_reader", None), transport_of(connection)
    return stream is None or stream.at_eof() or (transport is not None and transport.is_closing())


def transport_of(connection: AbstractConnection) -> asyncio.Transport | None:
    """None in process, where fakeredis has something like a stream."""
    if not isinstance(getattr(connection, "_reader", None), asyncio.StreamReader):
        return None
    transport: asyncio.Transport | None = getattr(connection._writer, "transport", None)
    return transport


def _texts(buffer: bytes, count: int) -> tuple[list[bytes], int] | None:
    """``count`` texts at the beginning of ``buffer``, and how much is left; None: they have to be read one by one.

    Most arrays are all texts (MGET). Cut at every line end at once they come out in half the time; and if every piece
    is as long as the one before it says, no text had a line end in it.
    """
    lines = buffer.split(b"\r\n", 2 * count)
    if len(lines) <= 2 * count or list(map(_SIZE_OF.get, lines[:-1:2])) != list(map(len, lines[1::2])):
        return None
    return lines[1::2], len(lines[-1])


def _line(kind: int, said: bytes) -> Any:
    """An answer that is one line; its kinds are those of RESP2."""
    if kind == _NUMBER:
        return int(said)
    if kind == _STATUS:
        return said
    if kind == _ERROR:
        return _error_of(said.decode(errors="replace"))
    if kind in (_TEXT, _ARRAY):
        return [] if said == b"0" else None
    raise driver.InvalidResponse(f"not an answer of Redis: {bytes([kind]) + said[:20]!r}")


def _error_of(said: str) -> driver.RedisError:
    kind, _, rest = said.partition(" ")
    if kind in _CLUSTER_ERRORS:
        return _CLUSTER_ERRORS[kind](rest)
    parse: Callable[[str], driver.RedisError] = DefaultParser.parse_error
    return parse(said)


class _Exchange(asyncio.Protocol):
    """One packet and its answers. From the first byte to the last the transport speaks to us, before and afterwards
    to the driver; one that was not left in order stays with us, who hear nothing more.
    """

    def __init__(
        self, transport: asyncio.Transport, packets: Sequence[bytes], count: int, take: Callable[[Any], None]
    ) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport = transport
        self._driver = transport.get_protocol()
        self._left = count
        self._take = take
        self._answers = Answers()
        if transport.is_closing():
            raise driver.ConnectionError("the server has closed the connection")
        transport.set_protocol(self)
        for piece in pieces(packets):
            transport.write(b"".join(piece))

    def data_received(self, data: bytes) -> None:
        if self.done.done():
            return
        try:
            answers = self._answers.feed(data)
            for answer in answers[: self._left]:
                self._take(answer)
            self._left -= len(answers)
            if self._left > 0:
                return
            if self._left or self._answers.begun or self._transport.get_write_buffer_size():
                raise driver.InvalidResponse("more was answered than was asked")
        except Exception as error:
            self.done.set_exception(error)
            return
        # At once: should the server say goodbye next, the driver has to hear it.
        self._transport.set_protocol(self._driver)
        self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            gone = driver.ConnectionError("the server closed the connection")
            gone.__cause__ = error
            self.done.set_exception(gone)


class Answers:
    """Bytes as they come to answers. Pure; what has come of an answer that is not complete is kept."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._lacking = 0  # bytes, at least, until there is another answer
        self._open: list[tuple[list[Any], int]] = []  # arrays that are not complete, and how much they are to hold

    @property
    def begun(self) -> bool:
        """Whether an answer has come in part."""
        return bool(self._parts or self._open)

    def feed(self, data: bytes) -> list[Any]:
        """The answers that ``data`` completes.

        Raises:
            driver.InvalidResponse: this is none.
        """
        self._lacking -= len(data)
        if self._parts or self._lacking > 0:
            self._parts.append(data)
            if self._lacking > 0:
                return []
            data = b"".join(self._parts)
            self._parts = []
        try:
            return self._read(data)
        except ValueError as error:
            raise driver.InvalidResponse("a length or a number of an answer is none") from error

    def _read(self, buffer: bytes) -> list[Any]:
        answers: list[Any] = []
        into, count = self._open[-1] if self._open else (answers, 0)
        at, size, find = 0, len(buffer), buffer.find
        while (end := find(b"\r\n", at)) >= 0:
            kind, said, start = buffer[at], buffer[at + 1 : end], end + 2
            if kind == _TEXT and said != b"-1":
                after = start + int(said) + 2
                if after > size:
                    self._lacking = after - size
                    break
                into.append(buffer[start : after - 2])
                at = after
            elif kind == _ARRAY and (length := int(said)) > 0:
                taken = None if self._open or answers else _texts(buffer[start:], length)
                if taken is None:
                    into, count, at = [], length, start
                    self._open.append((into, count))
                    continue
                texts, rest = taken
                into.append(texts)
                at = size - rest
            else:
                into.append(_line(kind, said))
                at = start
            while len(into) == count:
                whole, _ = self._open.pop()
                into, count = self._open[-1] if self._open else (answers, 0)
                into.append(whole)
        if at < size:
            self._parts.append(buffer[at:])
        return answers
