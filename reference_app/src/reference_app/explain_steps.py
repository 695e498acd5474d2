"""Part of :mod:`.explain_walk`: reading page after page, and waiting for what a task in the background sends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from daydo_db import Database
from daydo_db.telemetry import Sent

PAGE: Final = 20
WAIT_S: Final = 60.0


class Paged(Protocol):
    """A page of whatever it is."""

    @property
    def next_cursor(self) -> str | None: ...


async def leaf(read: Callable[[str | None], Awaitable[Paged]]) -> None:
    """Pages to the end, but at most as many as show that a deep one costs what the first does."""
    cursor = None
    for _ in range(PAGE):
        cursor = (await read(cursor)).next_cursor
        if cursor is None:
            return


async def sent(db: Database, part: str) -> None:
    """Return once a statement with ``part`` in it is sent, by a task of theirs."""
    heard = asyncio.Event()

    def listen(sent: Sent) -> None:
        if part in sent.statement.text.replace("%s", "?"):
            heard.set()

    with db.telemetry.listening(listen):
        async with asyncio.timeout(WAIT_S):
            await heard.wait()
