"""The door in front of the parser, and the breaker behind the features: what gives way, and what does not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from daydo_auth.asgi import ShieldConfig, security_headers
from daydo_kernel.testing import RecordedEvents
from daydo_redis import Redis
from daydo_redis.testing import eventually
from daydo_traffic import BreakerConfig, CircuitOpen, FeatureOff, Overloaded, Priority, Shedder, ShedderConfig
from reference_app.front_door import claimed, front_door, ordinary, refusal
from reference_app.images.errors import ImageTooLarge, WorkerCrashed, WorkersBusy
from reference_app.server import DrainingServer, bind
from reference_app.settings import load_settings
from reference_app.traffic import Traffic, TrafficConfig

GET = b"GET /api/v1/features HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    ("data", "priority"),
    [
        (GET + b"\r\n", Priority.NORMAL),
        (GET + b"AUTHORIZATION: Bearer x\r\n\r\n", Priority.HIGH),
        (GET + b"Cookie: a=b; __Host-daydo-access=x\r\n\r\n", Priority.HIGH),
        (GET + b"Cookie: a=b\r\n\r\n", Priority.NORMAL),
        (b"POST /a HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", Priority.NORMAL),
        (GET, None),
        (GET + b"\r\n" + GET + b"\r\n", None),
        (b"POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\n{}", None),
        (b"POST /a HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}", None),
        (b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", None),
        (GET + b"Upgrade: websocket\r\n\r\n", None),
        (GET + b"Expect: 100-continue\r\n\r\n", None),
        (b"GET / HTTP/1.0\r\n\r\n", None),
        (b"HEAD / HTTP/1.1\r\n\r\n", None),
        (b"GET /health/ready HTTP/1.1\r\n\r\n", None),
        (b"GET /metrics HTTP/1.1\r\n\r\n", None),
        (b"\x16\x03\x01", None),
    ],
)
def test_only_one_whole_request_is_told_at_a_glance(data: bytes, priority: Priority | None) -> None:
    """Health and metrics are never refused; whatever is unusual goes the usual way."""
    head = ordinary(data)
    assert (claimed(head) if head else None) == priority


@given(st.binary(max_size=300))
def test_any_bytes_may_come(data: bytes) -> None:
    """The glance never fails, and what it takes for a request has a head and nothing behind its body."""
    head = ordinary(data + b"\r\n\r\n")
    assert not head or b" http/1.1\r\n" in head


def test_a_refusal_is_in_the_houses_shape() -> None:
    """Status, envelope, and every header that other answers have."""
    head, _, body = refusal("en", 1, 7).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"\r\nretry-after: 1" in head
    assert f"content-length: {len(body)}".encode() in head
    for name, value in [*security_headers(ShieldConfig()), (b"cache-control", b"no-store")]:
        assert b"\r\n%b: %b" % (name, value) in head
    said = json.loads(body)
    assert (said["error"], said["message"]) == ("traffic.overloaded", Overloaded.en)
    assert b"\r\nx-request-id: " + said["request_id"].encode() in head


def test_all_refusals_of_a_second_are_one_text(caplog: pytest.LogCaptureFixture) -> None:
    """Made once for each language, with an id that the log has; the next second has another one."""
    first = refusal("zh-CN", 1, 1_000)
    assert refusal("zh-CN", 1, 1_000) is first
    (line,) = caplog.messages
    assert json.loads(first.partition(b"\r\n\r\n")[2])["request_id"] in line
    assert len({first, refusal("en", 1, 1_000), refusal("zh-CN", 1, 1_001)}) == len(caplog.messages) == 3


class Door(NamedTuple):
    """A server whose shedder is asked first, and its port."""

    shedder: Shedder
    port: int
    server: Any


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    """Three may be under way; nearly nobody is let in beyond that."""
    config = ShedderConfig(
        patience_s=0, lag_begin_s=5, lag_max_s=60, in_flight_begin=0, in_flight_max=3, admit_share=0.001
    )
    async with Shedder(config) as shedder:

        async def app(scope: Any, receive: Any, send: Any) -> None:
            inside = str((await shedder.health()).detail["in_flight"]).encode()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
            await send({"type": "http.response.body", "body": inside})

        listener = bind("127.0.0.1", 0)
        settings = uvicorn.Config(app, http=front_door(shedder), lifespan="off", log_config=None, access_log=False)
        server = DrainingServer(settings, lambda: None)
        serving = asyncio.create_task(server._serve([listener]))
        await eventually(lambda: server.started)
        yield Door(shedder, listener.getsockname()[1], server)
        server.should_exit = True
        await serving
        listener.close()


async def answers(port: int, *requests: bytes) -> list[tuple[int, bytes]]:
    """Status and body of each, on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found = []
    for request in requests:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
        found.append((int(head[9:12]), await reader.readexactly(length)))
    writer.close()
    await writer.wait_closed()
    return found


async def test_the_door_closes_and_opens(door: Door) -> None:
    """Refused and let in on the same connection; who is let in is counted while under way, and no longer."""
    shedder, port, _ = door
    visitor, user = GET + b"\r\n", GET + b"Authorization: Bearer x\r\n\r\n"
    with shedder.admit(Priority.CRITICAL), shedder.admit(Priority.CRITICAL):
        found = await answers(port, visitor, user, visitor, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert [status for status, _ in found] == [503, 200, 503, 200]
        assert found[1][1] == b"3"
    assert (await answers(port, visitor))[0][0] == 200
    assert (await shedder.health()).detail["in_flight"] == 0


async def test_a_refusal_speaks_the_language_that_was_asked_for(door: Door) -> None:
    """Chinese where nothing was, as everywhere."""
    with door.shedder.admit(Priority.CRITICAL), door.shedder.admit(Priority.CRITICAL):
        english = GET + b"Accept-Language: en-GB;q=0.8, fr\r\n\r\n"
        await answers(door.port, GET + b"\r\n")
        found = await answers(door.port, GET + b"\r\n", english, GET + b"\r\n")
    assert [json.loads(body)["message"] for _, body in found] == [Overloaded.zh, Overloaded.en, Overloaded.zh]


async def test_who_was_refused_keeps_the_connection(door: Door) -> None:
    """A head that was refused has come in time; only one that asks for it is hung up on, whatever its body says."""
    head = b"POST /api/v1/a HTTP/1.1\r\nHost: x\r\nContent-Length: 19\r\n"
    with door.shedder.admit(Priority.CRITICAL), door.shedder.admit(Priority.CRITICAL):
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        for _ in range(2):
            writer.write(head + b"\r\n" + b"\r\nconnection: close")
            answer = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(answer.partition(b"content-length: ")[2].split(b"\r\n")[0]))
            (protocol,) = door.server.server_state.connections
            assert protocol._head_timer is None, "it would end the connection"
        writer.write(GET + b"Connection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
        writer.close()
        await writer.wait_closed()


async def test_features_go_off_while_their_provider_fails() -> None:
    """Crashes open the breaker, and the features are off; a busy provider and bad photos do not."""

    class Provider:
        error: Exception = ImageTooLarge(actual="1", limit="0")

        async def run(self, call: Any) -> dict[str, Any]:
            raise self.error

    config = TrafficConfig(provider=BreakerConfig(calls_min=4, window_calls=4))
    async with Redis("embedded://memory") as redis:
        traffic = Traffic(config, redis, RecordedEvents())
        inner = Provider()
        provider: Any = traffic.guarded(inner, "local", ["cutout", "erase"])
        async with traffic.switches:
            for error in (inner.error, WorkersBusy(retry_after_s=1)):
                inner.error = error
                for _ in range(5):
                    with pytest.raises(type(error)):
                        await provider.run(None)
            assert traffic.switches.mode("feature.cutout") == "on"
            inner.error = WorkerCrashed()
            for _ in range(4):
                with pytest.raises((WorkerCrashed, CircuitOpen)):
                    await provider.run(None)
            assert traffic.switches.mode("feature.cutout") == traffic.switches.mode("feature.erase") == "off"
            assert traffic.switches.mode("feature.expand") == "on"
            with pytest.raises(FeatureOff):
                traffic.switches.require("feature.erase")


def test_one_setting_of_the_doors_leaves_the_others(tmp_path: Path) -> None:
    """They stay as this service has them, not as the library would."""
    environment = {"DAYDO_DATA_DIR": str(tmp_path), "DAYDO_TRAFFIC__SHEDDER__IN_FLIGHT_MAX": "50"}
    doors = TrafficConfig().shedder
    assert load_settings(environment).traffic.shedder == msgspec.structs.replace(doors, in_flight_max=50)
    assert doors.patience_s < ShedderConfig().patience_s
