"""The embedded default: chosen, private, swept, and gone with its process."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from daydo_kernel import NotStarted
from daydo_redis import Redis, RedisConfig, embedded
from daydo_redis.embedded import PrivateRedis
from daydo_redis.testing import START_S, eventually


def test_server_is_chosen_where_its_program_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """embedded:// prefers a real server; without its program it is in process; both can be asked for."""
    monkeypatch.setattr(embedded, "find_program", lambda: ("/usr/bin/redis-server", None))
    assert embedded.choose("embedded://") == "server"
    assert embedded.choose("embedded://memory") == "memory"
    monkeypatch.setattr(embedded, "find_program", lambda: None)
    assert embedded.choose("embedded://") == "memory"
    assert embedded.choose("embedded://server") == "server"


def test_program_may_hide_under_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's redis-tools alone: redis-check-rdb is found, to be called redis-server."""
    monkeypatch.setattr(embedded, "_OTHER_FOLDERS", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert embedded.find_program() is None
    program = tmp_path / "redis-check-rdb"
    program.touch(0o755)
    assert embedded.find_program() == (str(program), "redis-server")
    program = tmp_path / "valkey-server"
    program.touch(0o755)
    assert embedded.find_program() == (str(program), None)


async def test_missing_program_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """embedded://server on a machine without one says what to install and what else there is."""
    monkeypatch.setattr(embedded, "find_program", lambda: None)
    with pytest.raises(RuntimeError, match=r"install.*redis-tools.*embedded://memory"):
        async with Redis("embedded://server"):
            pass


async def test_missing_extra_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """embedded://memory without fakeredis says which extra to install."""
    monkeypatch.setattr(embedded, "has_memory", lambda: False)
    with pytest.raises(RuntimeError, match=r"pip install 'daydo-redis\[embedded\]'"):
        async with Redis("embedded://memory"):
            pass


@pytest.mark.parametrize(
    "url",
    [
        "embedded://disk",
        "embedded://server/name",
        "http://localhost",
        "redis://h:port",
        "redis://h/name",
        "redis://h?x=1",
        "",
    ],
)
def test_bad_url_is_refused_at_once(url: str) -> None:
    """A URL that cannot work is a ValueError of the constructor, before anything connects."""
    with pytest.raises(ValueError):  # noqa: PT011 (the words are partly the driver's)
        Redis(url)


@pytest.mark.parametrize("url", ["redis://h", "rediss://u:p@h:1/3?ssl_cert_reqs=none", "unix:///a/b.sock?db=2"])
def test_good_url_needs_no_loop_and_no_server(url: str) -> None:
    """Constructing does no I/O; only the embedded ones say so."""
    assert not Redis(url).embedded
    assert Redis("embedded://").embedded


async def test_use_outside_the_block_is_refused() -> None:
    """Before entry and after exit every call raises NotStarted, and health reports instead of raising."""
    redis = Redis("embedded://memory")
    script = redis.script("return 1")
    with pytest.raises(NotStarted):
        await redis.get("k")
    async with redis:
        assert await script() == 1
    with pytest.raises(NotStarted):
        await script()
    with pytest.raises(NotStarted):
        redis.subscribe("c")
    assert (await redis.health()).status == "down"
    async with redis:
        assert await script() == 1


async def test_memory_is_private_unless_named() -> None:
    """Two nouns in process see each other's data only under a name, which also survives one of them."""
    async with Redis("embedded://memory") as one, Redis("embedded://memory") as other:
        await one.set("k", "v")
        assert await other.get("k") is None
    try:
        async with Redis("embedded://memory/shop") as one:
            await one.set("k", "v")
        async with Redis("embedded://memory/shop") as one, Redis("embedded://memory/else") as other:
            assert (await one.get("k"), await other.get("k")) == (b"v", None)
    finally:
        embedded.forget_memory("embedded://memory/shop")
        embedded.forget_memory("embedded://memory/else")


async def test_memory_forgets_expired_keys_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that nobody asks for again do not pile up in process."""
    monkeypatch.setattr(embedded, "SWEEP_S", 0.01)
    url = "embedded://memory/swept"
    try:
        async with asyncio.timeout(5), Redis(url) as redis:
            for number in range(100):
                await redis.set(f"k{number}", "v", ttl_s=0.01)
            database = embedded._named_servers["swept"].dbs[0]
            assert database._dict
            await eventually(lambda: not database._dict)
    finally:
        embedded.forget_memory(url)


async def test_memory_gives_way_to_others() -> None:
    """A loop of calls in process lets other tasks run, as a loop of calls over a network does."""
    async with Redis("embedded://memory") as redis:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        for _ in range(100):
            await redis.get("k")
        task.cancel()
        assert turns >= 100


async def test_server_is_private_and_gone_afterwards(server: PrivateRedis) -> None:
    """Folder 0700, socket 0700, no port, nothing on disk; leaving removes folder and process."""
    assert stat.S_IMODE(server.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((server.folder / "redis.sock").stat().st_mode) == 0o700
    async with Redis(server.url) as redis:
        assert await redis.call("CONFIG", "GET", "port") == [b"port", b"0"]
        assert await redis.call("CONFIG", "GET", "save") == [b"save", b""]
        await redis.set("k", "v")
    pid = server.pid
    await asyncio.to_thread(server.stop)
    assert not server.folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_deep_temporary_folder_still_holds_a_socket(
    server: PrivateRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket path has some 100 bytes; a longer TMPDIR does not keep the server from starting."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    async with Redis("embedded://server") as redis:
        assert await redis.get("k") is None
    assert list(deep.iterdir()) == []


async def test_server_that_cannot_start_says_why(server: PrivateRedis) -> None:
    """The end of its log is in the error, although the folder with the log is gone by then."""
    broken = PrivateRedis(["--maxmemory", "a lot"])
    with pytest.raises(RuntimeError, match="a lot"):
        await asyncio.to_thread(broken.wait_ready, START_S)
    await asyncio.to_thread(broken.stop)
    assert not broken.folder.exists()


def held(folder: str) -> list[Path]:
    return list(Path(folder).iterdir())


async def test_cancelled_start_leaves_nothing(server: PrivateRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start given up half way stops the server it had launched."""
    launched = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait_ready(self: PrivateRedis, timeout_s: float) -> None:
        loop.call_soon_threadsafe(launched.set)
        time.sleep(0.1)

    monkeypatch.setattr(PrivateRedis, "wait_ready", wait_ready)
    # Short: under pytest-xdist tmp_path is too long for a socket, which then goes elsewhere.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr("tempfile.tempdir", folder)
        start = asyncio.create_task(Redis("embedded://server").__aenter__())
        await launched.wait()
        assert held(folder)
        start.cancel()
        await asyncio.gather(start, return_exceptions=True)
        assert held(folder) == []


async def test_server_that_dies_is_started_again(
    server: PrivateRedis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed under us: a log line, a subscriber told, and an empty server in its place, as private as the first."""
    made: list[PrivateRedis] = []

    class Seen(PrivateRedis):
        def wait_ready(self, timeout_s: float) -> None:
            super().wait_ready(timeout_s)
            made.append(self)

    monkeypatch.setattr(embedded, "PrivateRedis", Seen)
    config = RedisConfig(breaker_open_s=0.05, pubsub_retry_max_s=0.1)
    async with asyncio.timeout(START_S), Redis("embedded://server", config) as redis, redis.subscribe("c") as messages:
        await redis.set("k", "v")
        os.kill(made[0].pid, signal.SIGKILL)
        assert (await anext(messages)).missed
        assert await redis.get("k") is None
        assert await redis.set("k", "again")
        assert stat.S_IMODE(made[0].folder.stat().st_mode) == 0o700
        folder = made[0].folder
    assert "starting an empty one" in caplog.text
    assert not folder.exists()


async def test_memory_takes_as_many_calls_as_were_asked_for() -> None:
    """fakeredis' own bound of 100 connections is not ours: 300 calls at once, each over its own, are answered."""
    async with Redis("embedded://memory", RedisConfig(pool_size=300, merge_max=1)) as redis:
        answers = await asyncio.gather(*(redis.call("ECHO", number) for number in range(300)))
    assert answers == [b"%d" % number for number in range(300)]


async def test_blocking_reads_do_not_spin_in_process() -> None:
    """XREADGROUP with COUNT and BLOCK would return at once in process instead of waiting: it is refused."""
    async with Redis("embedded://memory") as redis:
        await redis.call("XGROUP", "CREATE", "s", "g", "$", "MKSTREAM")
        with pytest.raises(ValueError, match="BLOCK"):
            await redis.call("XREADGROUP", "GROUP", "g", "c", "COUNT", 1, "BLOCK", 1000, "STREAMS", "s", ">")
        with pytest.raises(ValueError, match="TRACKING"):
            await redis.call("CLIENT", "TRACKING", "ON")
        assert await redis.call("XREADGROUP", "GROUP", "g", "c", "COUNT", 1, "STREAMS", "s", ">") in (None, [])


PARENT = """
import asyncio, signal
# A shell that runs tests in the background has SIGINT ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
from daydo_redis import Redis, embedded
made = []
class Seen(embedded.PrivateRedis):
    def wait_ready(self, timeout_s):
        super().wait_ready(timeout_s)
        made.append(self)
embedded.PrivateRedis = Seen
async def main():
    async with Redis("embedded://server"):
        print(made[0].pid, made[0].folder, flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_server_dies_with_its_parent(server: PrivateRedis, number: signal.Signals) -> None:
    """However the process that embeds a server ends, SIGKILL included, server and folder go with it."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert parent.stdout is not None
    pid, folder = parent.stdout.readline().split()
    assert Path(folder).is_dir()
    parent.send_signal(number)
    parent.communicate()
    until = time.monotonic() + 10
    while (Path(folder).exists() or _alive(int(pid))) and time.monotonic() < until:
        time.sleep(0.02)
    assert not Path(folder).exists()
    assert not _alive(int(pid))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
