"""TLS to a real MariaDB, and what somebody in between may try."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from daydo_db import Database, DatabaseConfig, QueryTimeout, StatementFailed
from daydo_db.testing import PrivateMariaDB

PASSWORD = "a-password-nobody-may-read"
CLIENT_SSL = 0x0800


class Authority:
    """Issues certificates; its own is in ``file``."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.file = folder / f"{name}.pem"
        own = self._certificate(self.name, self.key, x509.BasicConstraints(ca=True, path_length=0))
        self.file.write_bytes(own.public_bytes(serialization.Encoding.PEM))

    def issue(self, *names: x509.GeneralName) -> tuple[Path, Path]:
        """A server's certificate for ``names``, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "database")])
        issued = self._certificate(subject, key, x509.SubjectAlternativeName(names))
        files = self.folder / "server.pem", self.folder / "server.key"
        files[0].write_bytes(issued.public_bytes(serialization.Encoding.PEM))
        plain = serialization.NoEncryption()
        pem, traditional = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL
        files[1].write_bytes(key.private_bytes(pem, traditional, plain))
        return files

    def _certificate(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType
    ) -> x509.Certificate:
        now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        return (
            x509.CertificateBuilder(self.name, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
            .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
            .add_extension(identifier, critical=False)
            .add_extension(issuer, critical=False)
            .sign(self.key, hashes.SHA256())
        )


class Server:
    """A MariaDB with a certificate for localhost and 127.0.0.1, and a user who must use TLS."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder, "authority")
        here = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        certificate, key = self.authority.issue(x509.DNSName("localhost"), here)
        program = shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin")
        assert program, "these tests start a MariaDB of their own"
        files = f"--ssl-ca={self.authority.file}", f"--ssl-cert={certificate}", f"--ssl-key={key}"
        self.process = PrivateMariaDB(program, *files)
        self.process.wait()
        self.port = self.process.port

    def url(self, host: str = "127.0.0.1", port: int | None = None) -> str:
        return f"mysql://shop:{PASSWORD}@{host}:{port or self.port}/mysql"

    def config(self, **changes: float) -> DatabaseConfig:
        return DatabaseConfig(tls=True, tls_ca_file=str(self.authority.file), **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if request.config.option.embedded:
        pytest.skip("--embedded: SQLite alone")
    server = Server(tmp_path_factory.mktemp("tls"))

    async def prepare() -> None:
        async with Database(f"{server.process.url}/mysql") as db:
            await db.execute(f"CREATE USER shop@'%' IDENTIFIED BY '{PASSWORD}' REQUIRE SSL")
            await db.execute("GRANT ALL ON *.* TO shop@'%'")

    asyncio.run(prepare())
    yield server
    server.process.stop()


@asynccontextmanager
async def in_between(
    server: Server, host: str = "127.0.0.1", change: Callable[[bytes], bytes] = bytes
) -> AsyncIterator[tuple[int, bytearray]]:
    """A relay: its port, and all that clients said. ``change`` may rewrite the server's greeting."""
    heard = bytearray()
    writers: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, note: bytearray | None) -> None:
        try:
            while data := await reader.read(65536):
                if note is not None:
                    note += data
                writer.write(data)
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", server.port)
        writers.extend((writer, far_writer))
        writer.write(change(await far_reader.read(65536)))
        await asyncio.gather(pump(reader, far_writer, heard), pump(far_reader, writer, None), return_exceptions=True)

    relay = await asyncio.start_server(serve, host, 0)
    try:
        yield relay.sockets[0].getsockname()[1], heard
    finally:
        relay.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)


def without_tls(greeting: bytes) -> bytes:
    """The greeting of a server that offers no TLS: behind its version stand 13 bytes, then what it is capable of."""
    at = greeting.index(b"\0", 5) + 1 + 13
    offered = int.from_bytes(greeting[at : at + 2], "little")
    assert offered & CLIENT_SSL
    return greeting[:at] + (offered & ~CLIENT_SSL).to_bytes(2, "little") + greeting[at + 2 :]


async def refused(url: str, config: DatabaseConfig) -> str:
    """What entering says."""
    with pytest.raises(StatementFailed) as caught:
        async with Database(url, config):
            pass
    return str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_verified_connection_is_encrypted(server: Server, host: str) -> None:
    """The login, what is asked and what is answered."""
    async with in_between(server) as (port, heard), Database(server.url(host, port), server.config()) as db:
        [(_, cipher)] = (await db.query("SHOW STATUS LIKE 'Ssl_cipher'")).rows
        assert cipher.startswith("TLS_")
        assert (await db.query("SELECT REPEAT('x', 300000)")).rows == [("x" * 300_000,)]
        assert len(heard) > 500
        for secret in (b"shop", PASSWORD.encode(), b"Ssl_cipher", b"REPEAT"):
            assert secret not in heard


async def test_an_authority_we_do_not_know_is_refused(server: Server, tmp_path: Path) -> None:
    """By another one of ours, and by the system's; the message says why."""
    other = Authority(tmp_path, "another")
    async with in_between(server) as (port, heard):
        config = DatabaseConfig(tls=True, tls_ca_file=str(other.file))
        assert "certificate verify failed" in await refused(server.url(port=port), config)
        assert "certificate verify failed" in await refused(server.url(port=port), DatabaseConfig(tls=True))
        assert b"shop" not in heard


async def test_a_certificate_for_another_host_is_refused(server: Server) -> None:
    """It is valid, and somebody else's."""
    async with in_between(server, "127.0.0.2") as (port, heard):
        assert "IP address mismatch" in await refused(server.url("127.0.0.2", port), server.config())
        assert b"shop" not in heard


async def test_a_server_without_tls_is_sent_nothing(server: Server) -> None:
    """It may be our server, and somebody in between who took the offer out of its greeting."""
    async with in_between(server, change=without_tls) as (port, heard):
        assert "offers none" in await refused(server.url(port=port), server.config())
        assert not heard


@pytest.mark.dialect("mysql")
async def test_the_servers_of_this_run_are_no_exception(database_url: str) -> None:
    """Those that offer no TLS, and those whose certificate nobody vouches for."""
    assert "tls" in (await refused(database_url, DatabaseConfig(tls=True))).lower()


async def test_a_file_without_authorities_is_named(tmp_path: Path) -> None:
    """At start; it is read once and not for each connection."""
    for file in (tmp_path / "missing.pem", tmp_path / "empty.pem"):
        (tmp_path / "empty.pem").touch()
        config = DatabaseConfig(tls=True, tls_ca_file=str(file))
        assert file.name in await refused("mysql://u@127.0.0.1:1/x", config)


async def test_a_statement_given_up_is_killed_over_tls_too(server: Server) -> None:
    """The killer logs in like everyone; and closing does not wait for a long goodbye."""
    async with Database(server.url(), server.config(statement_timeout_s=0.1)) as db:
        with pytest.raises(QueryTimeout):
            await db.query("SELECT SLEEP(60)")
        for _ in range(100):
            rows = (await db.query("SELECT 1 FROM information_schema.processlist WHERE info LIKE 'SELECT SLEEP%'")).rows
            if not rows:
                break
            await asyncio.sleep(0.02)
        assert not rows


GREETING = (
    b"\x0a5.5.5-10.11.6-MariaDB\0" + b"\x01\0\0\0" + b"saltsalt\0" + b"\xff\xf7" + b"\x2d\x02\0" + b"\xff\x81" + b"\x15"
) + (b"\0" * 10 + b"saltsaltsalt\0" + b"mysql_native_password\0")


class AsksForIt(asyncio.Protocol):
    """A server that greets and then wants to log us in by another plugin."""

    def __init__(self, plugin: bytes) -> None:
        self.switch = b"\xfe" + plugin + b"\0saltsalt"
        self.heard = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(len(GREETING).to_bytes(3, "little") + b"\0" + GREETING)

    def data_received(self, data: bytes) -> None:
        if not self.heard:
            self.transport.write(len(self.switch).to_bytes(3, "little") + b"\x02" + self.switch)
        self.heard += data


@pytest.mark.parametrize("plugin", [b"mysql_clear_password", b"mysql_old_password"])
async def test_a_server_that_asks_for_the_password_itself_gets_none(plugin: bytes) -> None:
    """Without TLS anybody in between could ask; the old plugin's hash is as good as the password."""
    asks = AsksForIt(plugin)
    server = await asyncio.get_running_loop().create_server(lambda: asks, "127.0.0.1", 0)
    url = f"mysql://shop:{PASSWORD}@127.0.0.1:{server.sockets[0].getsockname()[1]}/x"
    assert "plaintext" in await refused(url, DatabaseConfig())
    assert b"shop" in asks.heard
    assert PASSWORD.encode() not in asks.heard
    server.close()


def test_the_url_is_not_what_is_trusted() -> None:
    """Nothing in a URL turns verification off."""
    with pytest.raises(ValueError, match="only unix_socket"):
        Database(urlsplit("mysql://u@h/x")._replace(query="ssl_verify=0").geturl(), DatabaseConfig(tls=True))
