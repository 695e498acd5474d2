"""Servers of the tests' own, which say what a test wants; the ends of a conversation that all of them share."""

from __future__ import annotations

import asyncio


class Impostor:
    """Takes Redis' place on a port of the loopback; subclasses serve its connections."""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError

    async def _command(self, reader: asyncio.StreamReader) -> list[bytes]:
        """The words of the next command, an array of texts."""
        words = []
        for _ in range(int((await reader.readline())[1:])):
            length = int((await reader.readline())[1:])
            words.append((await reader.readexactly(length + 2))[:-2])
        return words
