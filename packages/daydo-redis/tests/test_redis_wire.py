"""Answers are read as they were sent, wherever the network has cut them."""

from __future__ import annotations

import asyncio
from enum import IntEnum
from typing import Any

import pytest
import redis.exceptions as driver
from hypothesis import given, settings
from hypothesis import strategies as st

from daydo_redis.wire import _Answers, pack, pieces


class Level(IntEnum):
    HIGH = 3


TEXTS = st.one_of(st.binary(max_size=40), st.sampled_from([b"", b"\r\n", b"$3\r\nabc\r\n", b"*1\r\n", b"-ERR\r\n"]))
ANSWERS = st.recursive(
    st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), TEXTS),
    lambda answers: st.lists(answers, max_size=8),
    max_leaves=30,
)


def sent(answer: Any) -> bytes:
    """``answer`` as a server sends it."""
    if answer is None:
        return b"$-1\r\n"
    if isinstance(answer, int):
        return b":%d\r\n" % answer
    if isinstance(answer, bytes):
        return b"$%d\r\n%b\r\n" % (len(answer), answer)
    return b"*%d\r\n%b" % (len(answer), b"".join(map(sent, answer)))


async def received(packet: bytes, cuts: list[int], count: int) -> list[Any]:
    """``count`` answers, read while ``packet`` arrives in pieces."""
    stream = asyncio.StreamReader()

    async def arrive() -> None:
        for start, end in zip([0, *cuts], [*cuts, len(packet)], strict=True):
            stream.feed_data(packet[start:end])
            await asyncio.sleep(0)
        stream.feed_eof()

    arriving = asyncio.create_task(arrive())
    answers = _Answers(stream)
    try:
        return [await answers.read() for _ in range(count)]
    finally:
        await arriving


@settings(max_examples=150, deadline=None)
@given(answers=st.lists(ANSWERS, min_size=1, max_size=5), data=st.data())
def test_answers_arrive_in_any_pieces(answers: list[Any], data: st.DataObject) -> None:
    """Texts with line ends in them, nothing, numbers and arrays in arrays, cut anywhere, come out as they went in."""
    packet = b"".join(map(sent, answers))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(packet)), max_size=12)))
    assert asyncio.run(received(packet, cuts, len(answers))) == answers


async def test_errors_stand_among_answers() -> None:
    """An error in an array is one of its answers, and what follows is read after it."""
    [answer] = await received(b"*4\r\n$1\r\na\r\n-ERR no\r\n*-1\r\n$1\r\nb\r\n", [], 1)
    assert (answer[0], answer[2:]) == (b"a", [None, b"b"])
    assert isinstance(answer[1], driver.ResponseError)


async def test_connection_that_ends_inside_an_array_is_lost() -> None:
    """Half an array is no array, wherever it was cut."""
    packet = sent([b"abc", None, b"x" * 20, 7])
    for end in range(len(packet)):
        with pytest.raises(driver.ConnectionError):
            await received(packet[:end], [], 1)


def test_words_arrive_as_they_read() -> None:
    """Text as UTF-8, bytes as they are, numbers as their digits, members of an IntEnum included."""
    long = [b"x" * size for size in (1_023, 1_024, 70_000)]
    words = ("SET", "ключ", b"\r\n\x00", 12, -1, 0.25, Level.HIGH, bytearray(b"x"), "", *long)
    sent_words = [b"SET", "ключ".encode(), b"\r\n\x00", b"12", b"-1", b"0.25", b"3", b"x", b"", *long]
    assert pack(words) == b"*12\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in sent_words)
    for wrong in (True, None, [1]):
        with pytest.raises(TypeError):
            pack(("GET", wrong))  # type: ignore[arg-type]


@given(st.lists(st.integers(1, 3_000).map(bytes), max_size=30))
def test_pieces_are_the_packet(packets: list[bytes]) -> None:
    """Put together they are what was given, none is empty, and each but the last is as long as it has to be."""
    cut = list(pieces(packets))
    assert [packet for piece in cut for packet in piece] == packets
    assert all(cut)
    for piece in cut[:-1]:
        assert sum(map(len, piece[:-1])) < 4_096 <= sum(map(len, piece))
    assert sum(map(len, cut[-1])) < 4_096 + 3_000 if cut else not packets
