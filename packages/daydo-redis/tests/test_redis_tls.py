"""TLS to a real server: the answers, the deadlines, and who is not believed."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from daydo_redis import Redis, RedisConfig, RedisTimeout, RedisUnavailable
from daydo_redis.embedded import PrivateRedis
from daydo_redis.testing import CALM, START_S


class Server:
    """A server whose port speaks TLS, with a certificate for 127.0.0.1 that it has issued itself."""

    def __init__(self, folder: Path) -> None:
        self.certificate, key = _issued(folder)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        files = ("--tls-cert-file", str(self.certificate), "--tls-key-file", str(key))
        self.process = PrivateRedis(("--tls-port", str(port), *files, "--tls-auth-clients", "no"))
        self.process.wait_ready(START_S)
        self.address = f"rediss://127.0.0.1:{port}"

    @property
    def url(self) -> str:
        return f"{self.address}?ssl_ca_certs={self.certificate}"


def _issued(folder: Path) -> tuple[Path, Path]:
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cache")])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(here, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    files = folder / "server.pem", folder / "server.key"
    files[0].write_bytes(certificate.public_bytes(pem))
    files[1].write_bytes(key.private_bytes(pem, serialization.PrivateFormat.TraditionalOpenSSL, plain))
    return files


@pytest.fixture(scope="module")
def server(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if pytestconfig.getoption("--embedded"):
        pytest.skip("needs a server with TLS, and --embedded leaves servers out")
    server = Server(tmp_path_factory.mktemp("tls"))
    yield server
    server.process.stop()


@pytest.fixture
async def redis(server: Server) -> AsyncIterator[Redis]:
    async with Redis(server.url, CALM) as redis:
        yield redis


async def test_answers_come_as_they_do_without(redis: Redis) -> None:
    """Longer than a record of TLS, many at once, and texts with line ends in them."""
    values = {f"k_{number}": bytes([number]) * number * 1_000 + b"\r\n" for number in range(40)}
    await asyncio.gather(*(redis.set(key, value) for key, value in values.items()))
    assert await redis.call("MGET", *values) == list(values.values())
    assert await asyncio.gather(*map(redis.get, values)) == list(values.values())
    assert await redis.script("return {1, ARGV[1], false}")(args=["x"]) == [1, b"x", None]


async def test_messages_arrive(redis: Redis) -> None:
    """On the connection that all subscribers share."""
    async with asyncio.timeout(10), redis.subscribe("task") as messages:
        await redis.publish("task", "done")
        assert (await anext(aiter(messages))).payload == b"done"


async def test_a_frozen_server_costs_a_deadline(server: Server) -> None:
    """The handshake was before; a call waits for its answer no longer than without TLS."""
    async with Redis(server.url, RedisConfig(retries=0)) as redis:
        await redis.set("k", "v")
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            with pytest.raises(RedisTimeout):
                await redis.get("k")
        finally:
            os.kill(server.process.pid, signal.SIGCONT)


async def test_a_server_that_nobody_vouches_for_is_refused(server: Server) -> None:
    """Its certificate is signed by none of the authorities that are known here."""
    async with Redis(server.address, CALM) as redis:
        with pytest.raises(RedisUnavailable):
            await redis.get("k")
