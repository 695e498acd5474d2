"""A relay in front of a MySQL server that hurts one statement: what a bad network or a bad day of the server does.

It speaks just enough of the protocol ("connection phase", "command phase" and "text protocol" in MySQL's and
MariaDB's documentation) to know where a statement and its answer begin and end. Errors are made by the server itself:
``SIGNAL`` takes the statement's place. Connections are cut on both sides; nothing is pretended.

Every driver that sends text can be led through it. What it could not read (TLS, compression, newer ends of results) is
taken out of the server's greeting, so it is not negotiated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from daydo_db.config import Location

from .aim import Aim, Fault

_MORE_RESULTS = 0x0008
_QUIT, _INIT_DB, _QUERY, _PING, _SET_OPTION, _RESET = 0x01, 0x02, 0x03, 0x0E, 0x1B, 0x1F
_SIMPLE = {_INIT_DB, _PING, _SET_OPTION, _RESET}
_OK, _LOCAL_INFILE, _EOF, _ERROR = 0x00, 0xFB, 0xFE, 0xFF
_LARGEST = 0xFFFFFF
_EOF_SIZE = 9

# Of the server's capabilities: compression, files of the client's, TLS; ends of results without EOF, results without
# metadata, another compression.
_LOW_HIDDEN = 0x0020 | 0x0080 | 0x0800
_HIGH_HIDDEN = (1 << 24 | 1 << 25 | 1 << 26) >> 16

_ERRORS = {
    Fault.DEADLOCK: (1213, "40001", "Deadlock found when trying to get lock; try restarting transaction"),
    Fault.LOCK_TIMEOUT: (1205, "HY000", "Lock wait timeout exceeded; try restarting transaction"),
    Fault.STOPPED: (1317, "70100", "Query execution was interrupted"),
}
# What a client says about its session or another one's, and not to the tables.
_HOUSEKEEPING = (b"SET ", b"KILL ", b"SELECT @@")


# As daydo-db joins several statements that go in one packet. No value has a line break of its own: they are escaped.
_BETWEEN = b"\n;"


class Cut(Exception):
    """The connection shall be closed, on both sides and at once."""


class Relay:
    """Listens on a free port of the loopback and leads to ``server``; what it does to whom, ``aim()`` says."""

    def __init__(self, server: Location, aim: Callable[[], Aim | None]) -> None:
        self._server = server
        self._aim = aim
        self._listener: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        """The port."""
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return int(self._listener.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Cut what is still connected."""
        if self._listener is not None:
            self._listener.close()
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        try:
            await self._connect(_Side(reader, writer))
        finally:
            self._links.discard(link)
            writer.transport.abort()

    async def _connect(self, client: _Side) -> None:
        where = self._server
        connecting = (
            asyncio.open_unix_connection(where.unix_socket)
            if where.unix_socket
            else asyncio.open_connection(where.host, where.port)
        )
        server = _Side(*await connecting)
        try:
            await _Link(client, server, self._aim).run()
        except (Cut, OSError, asyncio.IncompleteReadError):
            return
        finally:
            server.writer.transport.abort()


class _Side:
    """One end of a link, packet by packet."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def packet(self) -> tuple[bytes, bytes]:
        """The next payload, and the bytes it came as; one that goes on in further packets is joined."""
        payload, raw = b"", b""
        while True:
            head = await self.reader.readexactly(4)
            size = int.from_bytes(head[:3], "little")
            part = await self.reader.readexactly(size)
            payload, raw = payload + part, raw + head + part
            if size < _LARGEST:
                return payload, raw

    async def answer(self) -> bytes:
        """All bytes of the answer to one command, which may be of several results."""
        raw = bytearray()

        async def next_packet() -> bytes:
            payload, came_as = await self.packet()
            raw.extend(came_as)
            return payload

        status = _MORE_RESULTS
        while status & _MORE_RESULTS:
            head = await next_packet()
            if head[0] == _ERROR:
                break
            if head[0] == _LOCAL_INFILE:
                raise Cut
            if head[0] == _OK:
                _, at = _integer(head, 1)
                _, at = _integer(head, at)
                status = int.from_bytes(head[at : at + 2], "little")
            elif head[0] == _EOF and len(head) < _EOF_SIZE:
                status = int.from_bytes(head[3:5], "little")
            else:
                for _ in range(_integer(head, 0)[0] + 1):  # the columns, and their end
                    await next_packet()
                row = await next_packet()
                while not (row[0] == _ERROR or (row[0] == _EOF and len(row) < _EOF_SIZE)):
                    row = await next_packet()
                if row[0] == _ERROR:
                    break
                status = int.from_bytes(row[3:5], "little")
        return bytes(raw)

    def send(self, command: bytes) -> None:
        """A command in as many packets as it needs."""
        for number, start in enumerate(range(0, len(command) + 1, _LARGEST)):
            part = command[start : start + _LARGEST]
            self.writer.write(len(part).to_bytes(3, "little") + bytes((number & 0xFF,)) + part)

    async def ask(self, statements: Sequence[bytes]) -> bytes:
        if not statements:
            return b""
        self.send(bytes((_QUERY,)) + _BETWEEN.join(statements))
        return await self.answer()


class _Link:
    """A client and its server, from the greeting to the end."""

    def __init__(self, client: _Side, server: _Side, aim: Callable[[], Aim | None]) -> None:
        self._client, self._server, self._aim = client, server, aim
        self._several = False

    async def run(self) -> None:
        command = await self._log_in()
        while command[0] != _QUIT:
            if command[0] == _QUERY:
                await self._query(command[1:])
            elif command[0] in _SIMPLE:
                self._several = command == b"\x1b\x00\x00" or (self._several and command[0] != _SET_OPTION)
                self._server.send(command)
                self._client.writer.write(await self._server.answer())
            else:  # prepared statements and replication: their answers look otherwise
                self._client.writer.write(_error_packet(1295, "HY000", "the relay of the fault kit takes text only"))
            command, _ = await self._client.packet()

    async def _log_in(self) -> bytes:
        """Pass on what both say until the client gives its first command; that one."""
        _, greeting = await self._server.packet()
        self._client.writer.write(_without_what_we_cannot_read(greeting))
        talking = asyncio.create_task(self._pass_on())
        try:
            while True:
                payload, raw = await self._client.packet()
                if raw[3] == 0:  # A new conversation: the login is answered, and nothing more will come by itself.
                    return payload
                self._server.writer.write(raw)
        finally:
            talking.cancel()
            await asyncio.wait([talking])

    async def _pass_on(self) -> None:
        while data := await self._server.reader.read(65_536):
            self._client.writer.write(data)
        self._client.writer.transport.abort()

    async def _query(self, text: bytes) -> None:
        statements = text.split(_BETWEEN) if self._several else [text]
        aim = self._aim()
        for position, statement in enumerate(statements):
            if aim is None or statement.startswith(_HOUSEKEEPING):
                continue
            if aim.hits(statement.decode(errors="replace")):
                await self._strike(aim, statements, position)
                return
        self._client.writer.write(await self._server.ask(statements))

    async def _strike(self, aim: Aim, statements: list[bytes], position: int) -> None:
        """Do what was asked for at the statement at ``position``; those before it are carried out."""
        match aim.fault:
            case Fault.CUT_BEFORE:
                await self._server.ask(statements[:position])
                raise Cut
            case Fault.CUT_AFTER:
                await self._server.ask(statements[: position + 1])
                raise Cut
            case Fault.SILENT:
                await self._server.ask(statements[: position + 1])
                while True:
                    await self._client.packet()  # until it goes
            case Fault.CANCELLED:
                answer = await self._server.ask(statements)
                aim.cancel()
                await asyncio.sleep(0)  # It is first to hear of it.
                self._client.writer.write(answer)
            case _:
                answer = await self._server.ask([*statements[:position], _signal(aim.fault)])
                if aim.fault is Fault.DEADLOCK:
                    await self._server.ask([b"ROLLBACK"])
                self._client.writer.write(answer)


def _signal(fault: Fault) -> bytes:
    number, state, message = _ERRORS[fault]
    return f"SIGNAL SQLSTATE '{state}' SET MYSQL_ERRNO = {number}, MESSAGE_TEXT = '{message}'".encode()


def _error_packet(number: int, state: str, message: str) -> bytes:
    payload = bytes((_ERROR,)) + number.to_bytes(2, "little") + f"#{state}{message}".encode()
    return len(payload).to_bytes(3, "little") + b"\x01" + payload


def _without_what_we_cannot_read(greeting: bytes) -> bytes:
    if greeting[4] == _ERROR:  # Too many connections, or the like.
        return greeting
    low = greeting.index(b"\0", 5) + 1 + 4 + 8 + 1  # behind version, thread and the first half of the nonce
    changed = bytearray(greeting)
    changed[low : low + 2] = _masked(greeting[low : low + 2], _LOW_HIDDEN)
    changed[low + 5 : low + 7] = _masked(greeting[low + 5 : low + 7], _HIGH_HIDDEN)
    return bytes(changed)


def _masked(flags: bytes, hidden: int) -> bytes:
    return (int.from_bytes(flags, "little") & ~hidden).to_bytes(2, "little")


def _integer(data: bytes, at: int) -> tuple[int, int]:
    """A length-encoded integer and where it ends."""
    width = {0xFC: 2, 0xFD: 3, 0xFE: 8}.get(data[at], 0)
    if not width:
        return data[at], at + 1
    return int.from_bytes(data[at + 1 : at + 1 + width], "little"), at + 1 + width
