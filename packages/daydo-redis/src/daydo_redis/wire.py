"""Commands to bytes, bytes to answers: RESP2 as we speak it below the driver's ``execute_command``.

The driver connects, logs in and writes; here the answers to many commands sent at once are read. Its own reader
takes 10 µs for each of them, half a dozen coroutines deep; this one takes 2. A connection that speaks something else
(RESP3, or fakeredis in process) is read through the driver's ``read_response``.
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
_READ_BYTES = 65_536
_PIECE_BYTES = 4_096
_TEXT, _NUMBER = b"$:"
_SMALL = 1_024
_SIZES = [b"$%d\r\n" % size for size in range(_SMALL)]
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


def answers_of(connection: AbstractConnection) -> Callable[[], Awaitable[Any]]:
    """What reads the next answer from ``connection``; an error answer is returned, not raised.

    Raises (when awaited):
        driver.ConnectionError, OSError: the connection ended before the answer did.
    """
    stream = getattr(connection, "_reader", None)
    if isinstance(stream, asyncio.StreamReader) and str(connection.protocol) == "2":
        return _Answers(stream).read

    async def read() -> Any:
        try:
            return await connection.read_response(disable_decoding=True)
        except _SAID_NO as error:
            return error
        except (driver.ConnectionError, driver.TimeoutError):
            raise
        except driver.RedisError as error:
            return error

    return read


def is_stale(connection: AbstractConnection) -> bool:
    """Whether the server has closed this idle connection; then nothing must be sent on it."""
    stream = getattr(connection, "_reader", None)
    return stream is None or stream.at_eof()


def _error_of(said: str) -> driver.RedisError:
    kind, _, rest = said.partition(" ")
    if kind in _CLUSTER_ERRORS:
        return _CLUSTER_ERRORS[kind](rest)
    parse: Callable[[str], driver.RedisError] = DefaultParser.parse_error
    return parse(said)


class _Answers:
    """A cursor over what the server sends; made for one exchange, at the end of which nothing is left over."""

    __slots__ = ("_at", "_buffer", "_stream")

    def __init__(self, stream: asyncio.StreamReader) -> None:
        self._stream = stream
        self._buffer = b""
        self._at = 0

    async def read(self) -> Any:
        end = self._buffer.find(b"\r\n", self._at)
        while end < 0:
            await self._more()
            end = self._buffer.find(b"\r\n", self._at)
        kind, rest = self._buffer[self._at : self._at + 1], self._buffer[self._at + 1 : end]
        self._at = at = end + 2
        if kind == b"$":
            if rest == b"-1":
                return None
            length = int(rest)
            self._at += length + 2
            # Here, and not in a method: most answers are small texts that have come already.
            return self._buffer[at : at + length] if self._at <= len(self._buffer) else await self._rest_of(at, length)
        if kind == b":":
            return int(rest)
        if kind == b"+":
            return rest
        if kind == b"*":
            return None if rest == b"-1" else await self._array(int(rest))
        if kind == b"-":
            return _error_of(rest.decode(errors="replace"))
        raise driver.InvalidResponse(f"not an answer of Redis: {kind + rest[:20]!r}")

    async def _array(self, count: int) -> list[Any]:
        """``count`` answers. The plain ones among them that have come already are taken in one go: most arrays are
        all texts (MGET) or all numbers (a script's answer).
        """
        answers: list[Any] = []
        while len(answers) < count:
            self._take_plain(answers, count)
            if len(answers) < count:
                answers.append(await self.read())
        return answers

    def _take_plain(self, answers: list[Any], count: int) -> None:
        """Append the texts and numbers that follow here, up to ``count`` answers and to the end of what has come."""
        buffer, at, size = self._buffer, self._at, len(self._buffer)
        find, append = buffer.find, answers.append
        for _ in range(count - len(answers)):
            end = find(b"\r\n", at)
            if end < 0:
                break
            kind = buffer[at]
            if kind == _NUMBER:
                append(int(buffer[at + 1 : end]))
                at = end + 2
                continue
            if kind != _TEXT:
                break
            length = int(buffer[at + 1 : end])
            if length < 0:
                append(None)
                at = end + 2
                continue
            after = end + length + 4
            if after > size:
                break
            append(buffer[end + 2 : after - 2])
            at = after
        self._at = at

    async def _rest_of(self, at: int, length: int) -> bytes:
        head = self._buffer[at:]
        self._buffer, self._at = b"", 0
        try:
            return (head + await self._stream.readexactly(length + 2 - len(head)))[:-2]
        except asyncio.IncompleteReadError as error:
            raise driver.ConnectionError("the server closed the connection") from error

    async def _more(self) -> None:
        data = await self._stream.read(_READ_BYTES)
        if not data:
            raise driver.ConnectionError("the server closed the connection")
        self._buffer = self._buffer[self._at :] + data
        self._at = 0
