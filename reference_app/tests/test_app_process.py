"""The service as a process: stopped politely, killed, restarted, in several workers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from reference_app.server import ServiceProcess
from reference_app.testing import GENEROUS, Client, photo

QUICK_LEASE = {"DAYDO_PIPELINE__LEASE_S": "2"}


def descendants(pid: int) -> set[int]:
    """All living processes below ``pid``."""
    parents = {}
    for entry in Path("/proc").iterdir():
        with suppress(ValueError, OSError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found: set[int] = set()
    while fresh := {child for child, parent in parents.items() if parent in found | {pid}} - found:
        found |= fresh
    return found


def alive(pids: set[int]) -> set[int]:
    """Those that still run (a zombie waiting for its parent does not)."""
    running = set()
    for pid in pids:
        with suppress(OSError):
            if (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                running.add(pid)
    return running


def eventually_gone(pids: set[int], within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pids)


def wait_for_status(user: Client, task: str, status: str) -> None:
    deadline = time.monotonic() + 15
    while user.ok("GET", f"/tasks/{task}")["status"] != status:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_service_leaves_no_child_and_finishes_its_task_after_a_restart(tmp_path):
    """kill −9 in the middle of a task: after the restart it is done once, and paid for once."""
    with ServiceProcess(tmp_path, QUICK_LEASE) as service, Client(service.url) as user:
        user.register()
        task = user.start("cutout", {"photo": user.upload(photo(size=(4000, 3000)))}, key="slow").json()["data"]["id"]
        wait_for_status(user, task, "running")
        children = descendants(service.process.pid)
        assert children, "the image workers should be processes"
        service.process.kill()
        service.process.wait()
        assert eventually_gone(children)
    with ServiceProcess(tmp_path, QUICK_LEASE) as service, Client(service.url) as again:
        again.http.headers["Authorization"] = user.http.headers["Authorization"]
        finished = again.wait(task)
        balance = again.credits()
        kinds = sorted(entry["kind"] for entry in again.ok("GET", "/quota/history")["items"])
        if finished["status"] == "succeeded":
            assert (balance["available"], balance["reserved"], balance["spent"]) == (95, 0, 5)
            assert kinds == ["confirmed", "granted", "held"]
            assert again.call("GET", f"/tasks/{task}/result").status_code == 200
        else:
            assert (balance["available"], balance["reserved"], balance["spent"]) == (100, 0, 0)
            assert kinds == ["cancelled", "granted", "held"]


def test_a_polite_stop_ends_open_streams_and_the_process_quickly(tmp_path):
    """SIGTERM: live streams end by themselves instead of holding the stop for its whole bound."""
    with ServiceProcess(tmp_path, {"DAYDO_DRAIN_S": "20"}) as service, Client(service.url) as user:
        user.register()
        ended: dict[str, object] = {}
        opened = threading.Barrier(3)

        def read_stream() -> None:
            with user.http.stream("GET", "/tasks/events", params={"ticket": tickets[0]}) as stream:
                lines = stream.iter_lines()
                next(lines)
                opened.wait()
                ended["sse"] = list(lines)

        def read_socket() -> None:
            with user.websocket(ticket=tickets[1]) as socket:
                opened.wait()
                with suppress(Exception):
                    socket.recv(timeout=20)
                ended["ws"] = socket.close_code

        tickets = [user.ticket(), user.ticket()]
        readers = [threading.Thread(target=read_stream), threading.Thread(target=read_socket)]
        for reader in readers:
            reader.start()
        opened.wait()
        children = descendants(service.process.pid)
        before = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        service.process.wait(15)
        assert time.monotonic() - before < 8
        for reader in readers:
            reader.join(5)
        assert "sse" in ended
        assert ended["ws"] == 1012
        assert eventually_gone(children)


def test_ctrl_c_ends_the_service_without_a_traceback(tmp_path):
    """Status 0 and a quiet last line, for the person at the terminal."""
    with ServiceProcess(tmp_path) as service:
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(15) == 0
        assert "Traceback" not in service.log.read_text()


def test_a_service_with_a_bad_setting_says_so_and_does_not_start(tmp_path):
    """Exit status 1 and the problem in words; no traceback."""
    with pytest.raises(Exception, match="DAYDO_WELCOME_CREDITS") as caught:
        ServiceProcess(tmp_path, {"DAYDO_WELCOME_CREDITS": "many"}).__enter__()
    assert "Traceback" not in str(caught.value)


@pytest.fixture
def two_workers(tmp_path, shared_backends) -> Iterator[ServiceProcess]:
    # GENEROUS: the Redis that it shares has counted everybody whom the tests before it have registered.
    with ServiceProcess(tmp_path, {**shared_backends, **GENEROUS, "DAYDO_WORKERS": "2"}) as service:
        yield service


def test_two_workers_share_port_database_and_counters_and_die_with_their_parent(two_workers):
    """Any worker answers for all of them; kill −9 of the parent leaves nobody on the port."""
    for _ in range(40):
        httpx.get(f"{two_workers.url}/api/v1/features").raise_for_status()
    pids = {pid for pid in descendants(two_workers.process.pid) if "--worker" in _command(pid)}
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while _requests_counted(two_workers.url) < 40:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    with Client(two_workers.url) as user:
        user.register()
        task = user.start("cutout", {"photo": user.upload(photo())}).json()["data"]["id"]
        assert user.wait(task)["status"] == "succeeded"
    everyone = descendants(two_workers.process.pid)
    os.kill(two_workers.process.pid, signal.SIGKILL)
    assert eventually_gone(everyone)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{two_workers.url}/health/live")


def test_workers_that_are_asked_to_stop_end_in_good_order(two_workers):
    """SIGTERM to the parent: every worker drains and the exit status is 0."""
    workers = descendants(two_workers.process.pid)
    two_workers.process.send_signal(signal.SIGTERM)
    assert two_workers.process.wait(30) == 0
    assert eventually_gone(workers)


def test_historical_names_of_the_environment_stay_outside(tmp_path, monkeypatch):
    """The demo and the tests must never touch the database that DATABASE_URL happens to name."""
    monkeypatch.setenv("DATABASE_URL", "mysql://root@127.0.0.1:1/production")
    monkeypatch.setenv("PORT", "1")
    with ServiceProcess(tmp_path) as service:
        assert httpx.get(f"{service.url}/health/db").json()["data"]["parts"]["db"]["detail"]["dialect"] == "sqlite"


def _command(pid: int) -> str:
    with suppress(OSError):
        return (Path("/proc") / str(pid) / "cmdline").read_text()
    return ""


def _requests_counted(url: str) -> float:
    for line in httpx.get(f"{url}/metrics").text.splitlines():
        if line.startswith("daydo_http_requests_total{") and 'route="/api/v1/features"' in line:
            return float(line.rpartition(" ")[2])
    return 0.0
