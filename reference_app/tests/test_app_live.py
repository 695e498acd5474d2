"""Streams say something when nothing happens, and close what they read from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from reference_app.images.dto import TaskEvent
from reference_app.images.live import server_sent

EVENT = TaskEvent(
    cursor="7", type="run.running", task_id="run_1", feature="cutout", status="running", progress=0.5, at="now"
)


class Source:
    """One event, a silence until told otherwise, the end."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.closed = False

    async def events(self) -> AsyncGenerator[TaskEvent, None]:
        try:
            yield EVENT
            await self.go_on.wait()
        finally:
            self.closed = True


async def test_a_silent_stream_carries_comments():
    """Opened, an event with its cursor as id, comments while nothing happens, then the end."""
    source = Source()
    stream = server_sent(source.events(), comment_s=0.01)
    assert await anext(stream) == b": open\n\n"
    event = await anext(stream)
    assert event.startswith(b"id: 7\nevent: run.running\ndata: {")
    assert event.endswith(b"}\n\n")
    assert [await anext(stream) for _ in range(2)] == [b": still here\n\n"] * 2
    source.go_on.set()
    rest = [chunk async for chunk in stream]
    assert set(rest) <= {b": still here\n\n"}
    assert source.closed


async def test_a_client_that_leaves_closes_the_source():
    """Closing the outer stream reaches the innermost generator at once."""
    source = Source()
    stream = server_sent(source.events(), comment_s=5)
    await anext(stream)
    await anext(stream)
    await stream.aclose()
    assert source.closed
