"""Answers are read as they were sent, wherever the network has cut them."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import pytest
import redis.exceptions as driver
from hypothesis import given, settings
from hypothesis import strategies as st

from daydo_redis import wire
from daydo_redis.wire import Answers, pack, pieces


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


def received(packet: bytes, cuts: list[int]) -> list[Any]:
    """The answers in ``packet``, read while it arrives in pieces."""
    reading = Answers()
    return [
        answer
        for start, end in zip([0, *cuts], [*cuts, len(packet)], strict=True)
        for answer in reading.feed(packet[start:end])
    ]


@settings(max_examples=150, deadline=None)
@given(answers=st.lists(ANSWERS, min_size=1, max_size=5), data=st.data())
def test_answers_arrive_in_any_pieces(answers: list[Any], data: st.DataObject) -> None:
    """Texts with line ends in them, nothing, numbers and arrays in arrays, cut anywhere, come out as they went in."""
    packet = b"".join(map(sent, answers))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(packet)), max_size=12)))
    assert received(packet, cuts) == answers


def test_errors_stand_among_answers() -> None:
    """An error in an array is one of its answers, and what follows is read after it."""
    [answer] = received(b"*4\r\n$1\r\na\r\n-ERR no\r\n*-1\r\n$1\r\nb\r\n", [])
    assert (answer[0], answer[2:]) == (b"a", [None, b"b"])
    assert isinstance(answer[1], driver.ResponseError)


def test_half_an_answer_is_none() -> None:
    """Wherever it was cut, there is no answer before its last byte; and then nothing is left over."""
    packet = sent([b"abc", None, [b"x" * 20, 7], b"end"])
    for end in range(len(packet)):
        reading = Answers()
        assert reading.feed(packet[:end]) == []
        assert reading.begun or not end
        assert len(reading.feed(packet[end:])) == 1
        assert not reading.begun


def test_what_is_no_answer_is_refused() -> None:
    """A line of another protocol, and a length that is none, end the reading instead of being taken for something."""
    for said in (b"HTTP/1.1 400\r\n", b"$x\r\n", b"*1.5\r\n", b":\r\n"):
        with pytest.raises(driver.InvalidResponse):
            Answers().feed(said)


def test_long_answers_cost_what_they_weigh(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text in thousands of pieces is put together once; arrays in arrays are not cut up again for each of them."""
    looked: list[int] = []
    read, texts = Answers._read, wire._texts
    monkeypatch.setattr(Answers, "_read", lambda self, buffer: looked.append(len(buffer)) or read(self, buffer))
    monkeypatch.setattr(wire, "_texts", lambda buffer, count: looked.append(len(buffer)) or texts(buffer, count))

    packet = sent(bytes(2_000_000))
    assert received(packet, list(range(0, 2_000_000, 1_000))) == [bytes(2_000_000)]
    assert sum(looked) < 2 * len(packet)

    entries = [[b"%d" % number, [b"field", b"value"]] for number in range(2_000)]
    packet = sent(entries)
    for cuts in ([], list(range(0, len(packet), 700))):
        looked.clear()
        assert received(packet, cuts) == [entries]
        assert sum(looked) < 3 * len(packet)


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
