"""Streams say something when nothing happens, close what they read from, and end with their user's session."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import ExitStack

import pytest
from websockets.exceptions import ConnectionClosed

from daydo_auth import AuthError, SessionRevoked
from reference_app.images.dto import TaskEvent
from reference_app.images.live import server_sent
from reference_app.testing import photo

EVENT = TaskEvent(
    cursor="7", type="run.running", task_id="run_1", feature="cutout", status="running", progress=0.5, at="now"
)


class Source:
    """One event, a silence until told otherwise, another, the end. Its listener may be refused meanwhile."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.refuse = asyncio.Event()
        self.closed = False

    async def refused(self) -> AuthError:
        await self.refuse.wait()
        return SessionRevoked()

    async def events(self) -> AsyncGenerator[TaskEvent, None]:
        try:
            yield EVENT
            await self.go_on.wait()
            yield EVENT
        finally:
            self.closed = True


async def test_a_silent_stream_carries_comments():
    """Opened, an event with its cursor as id, comments while nothing happens, then the end."""
    source = Source()
    stream = server_sent(source.events(), 0.01, source.refused)
    assert await anext(stream) == b": open\n\n"
    event = await anext(stream)
    assert event.startswith(b"id: 7\nevent: run.running\ndata: {")
    assert event.endswith(b"}\n\n")
    assert [await anext(stream) for _ in range(2)] == [b": still here\n\n"] * 2
    source.go_on.set()
    rest = [chunk async for chunk in stream]
    assert set(rest) - {b": still here\n\n"} == {event}
    assert source.closed


async def test_a_client_that_leaves_closes_the_source():
    """Closing the outer stream reaches the innermost generator at once."""
    source = Source()
    before = asyncio.all_tasks()
    stream = server_sent(source.events(), 5, source.refused)
    await anext(stream)
    await anext(stream)
    await stream.aclose()
    assert source.closed
    assert asyncio.all_tasks() == before


async def test_a_listener_who_is_refused_hears_nothing_more():
    """Not even what happened while the client was slow to read, and nothing goes on running for the stream."""
    source = Source()
    before = asyncio.all_tasks()
    stream = server_sent(source.events(), 60, source.refused)
    await anext(stream)
    await anext(stream)
    rest = asyncio.ensure_future(anext(stream, None))
    source.refuse.set()
    source.go_on.set()
    assert await asyncio.wait_for(rest, 10) is None
    assert source.closed
    assert asyncio.all_tasks() == before


def test_logging_out_ends_my_streams_and_nobody_elses(user, stranger):
    """Both transports end by themselves, the WebSocket with 4401 and why; a stranger's go on telling."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(each.websocket(ticket=each.ticket())) for each in (user, stranger)]
        streams = [
            stack.enter_context(each.http.stream("GET", "/tasks/events", params={"ticket": each.ticket()}))
            for each in (user, stranger)
        ]
        mine, theirs = [stream.iter_lines() for stream in streams]
        assert next(mine) == next(theirs) == ": open"
        user.ok("POST", "/auth/logout")
        with pytest.raises(ConnectionClosed) as closed:
            sockets[0].recv(timeout=10)
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4401, "auth.session_revoked")
        assert not [line for line in mine if line.startswith("data:")]
        task = stranger.start("cutout", {"photo": stranger.upload(photo())}).json()["data"]["id"]
        assert json.loads(sockets[1].recv(timeout=10))["task_id"] == task
        told = next(line for line in theirs if line.startswith("data: "))
        assert json.loads(told.removeprefix("data: "))["task_id"] == task
