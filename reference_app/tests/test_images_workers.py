"""The pool under crashes, hangs, cancellation, a full queue, and the death of the service."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from daydo_kernel import InternalError, NotStarted
from reference_app.images.errors import (
    BadExpansion,
    BrokenImage,
    ImageError,
    ImageTooLarge,
    JobTimedOut,
    UnsupportedImage,
    WorkerCrashed,
    WorkersBusy,
)
from reference_app.images.jobs import Job, partial
from reference_app.images.workers import ImageWorkers, ImageWorkersConfig

ONE = ImageWorkersConfig(workers=1, nice=0)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A white square before noise."""
    pixels = np.random.default_rng(0).integers(60, 110, (300, 400, 3), np.uint8)
    pixels[90:210, 130:270] = 250
    path = tmp_path / "photo"
    Image.fromarray(pixels).save(path, "PNG")
    return path


@pytest.fixture
def job(photo: Path, tmp_path: Path) -> Job:
    return Job(inputs={"photo": str(photo)}, output=str(tmp_path / "result.png"))


@pytest.fixture
async def pool() -> AsyncIterator[ImageWorkers]:
    async with ImageWorkers(ONE) as workers:
        yield workers


def pids(workers: ImageWorkers) -> set[int]:
    return {worker.pid for worker in workers._workers}


def exists(path: str) -> bool:
    return Path(path).exists()


def size_of(path: str) -> int:
    return Path(path).stat().st_size


def content_of(path: str) -> bytes:
    return Path(path).read_bytes()


def leave_half(path: str) -> None:
    Path(path).write_bytes(b"half")


def only(workers: ImageWorkers) -> int:
    (pid,) = pids(workers)
    return pid


async def until(condition: Callable[[], bool]) -> None:
    """Wait for another process, for at most 15 s."""
    async with asyncio.timeout(15):
        while not condition():  # noqa: ASYNC110 - another process has no event to wait for
            await asyncio.sleep(0.01)


async def started(workers: ImageWorkers, job: Job) -> asyncio.Task[object]:
    """A job that has reached a worker, which was stopped so that it cannot finish."""
    os.kill(only(workers), signal.SIGSTOP)
    task = asyncio.create_task(workers.run("cutout", job))
    await until(lambda: workers._busy == 1)
    return task


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def count(workers: ImageWorkers, name: str, *labels: str) -> float:
    for family in workers.metrics.snapshot():
        if family.name == name:
            return next(cell.values[0] for cell in family.cells if cell.labels == labels)
    raise LookupError(name)


async def test_all_operations_work_on_files(pool: ImageWorkers, job: Job, tmp_path: Path) -> None:
    """Inspect, cut out, erase, expand: files in, files out, figures back."""
    seen = await pool.run("inspect", job)
    assert (seen.media_type, seen.width, seen.height) == ("image/png", 400, 300)
    cut = await pool.run("cutout", job)
    with Image.open(job.output) as result:
        assert (result.mode, result.size) == ("RGBA", (400, 300))
        assert [result.getchannel("A").getpixel(place) for place in ((200, 150), (20, 20))] == [255, 0]
    assert cut.size_bytes == size_of(job.output)
    mask = tmp_path / "mask"
    alpha = Image.open(job.output).getchannel("A")
    alpha.save(mask, "PNG")
    await pool.run("erase", Job(inputs={**job.inputs, "mask": str(mask)}, output=str(tmp_path / "erased")))
    with Image.open(tmp_path / "erased") as result:
        assert result.convert("L").getpixel((200, 150)) in range(130)
    wide = await pool.run("expand", Job(inputs=job.inputs, output=str(tmp_path / "wide"), params={"left": 0.5}))
    assert (wide.width, wide.height) == (600, 300)
    assert count(pool, "daydo_app_images_jobs_total", "cutout", "done") == 1


async def test_refusals_cross_the_pipe_whole(pool: ImageWorkers, job: Job, tmp_path: Path) -> None:
    """An error raised in a worker arrives with its class, number and facts; the worker lives on."""
    pid = only(pool)
    bad = tmp_path / "bad"
    cases: list[tuple[bytes, type[ImageError]]] = [
        (b"text named .png", UnsupportedImage),
        (content_of(job.inputs["photo"])[:5000], BrokenImage),
        (b"x" * (11 * 2**20), ImageTooLarge),
    ]
    for content, error in cases:
        bad.write_bytes(content)
        with pytest.raises(error):
            await pool.run("inspect", Job(inputs={"photo": str(bad)}))
    with pytest.raises(ImageTooLarge) as refused:
        await pool.run("inspect", Job(inputs={"photo": str(bad)}))
    assert (refused.value.actual, refused.value.limit) == ("11.0 MiB", "10.0 MiB")
    with pytest.raises(BadExpansion) as unread:
        await pool.run("expand", Job(inputs=job.inputs, output=job.output, params={"left": 2}))
    assert unread.value.fields[0].field == "params"
    assert only(pool) == pid
    assert not exists(job.output)
    assert count(pool, "daydo_app_images_jobs_total", "inspect", "refused") == 4


async def test_a_fault_of_ours_is_logged_and_hidden(
    pool: ImageWorkers, job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    """A missing file is our mistake: the log has the trace, the caller an internal error, the worker lives."""
    pid = only(pool)
    with pytest.raises(InternalError):
        await pool.run("cutout", Job(inputs={"photo": "/nowhere/photo"}, output=job.output))
    assert "FileNotFoundError" in caplog.text
    assert only(pool) == pid


async def test_the_event_loop_stays_free(pool: ImageWorkers, tmp_path: Path) -> None:
    """While a large photo is worked on, the loop keeps turning."""
    large = tmp_path / "large"
    Image.effect_noise((2000, 2000), 60).convert("RGB").save(large, "JPEG")
    job = Job(inputs={"photo": str(large)}, output=str(tmp_path / "out"), params={"left": 0.2})
    task = asyncio.create_task(pool.run("expand", job))
    turns = 0
    while not task.done():
        await asyncio.sleep(0.005)
        turns += 1
    await task
    assert turns > 15


async def test_a_crashed_worker_fails_its_own_job_only(job: Job, tmp_path: Path) -> None:
    """SIGKILL under one job: that job may be retried, the other worker's job succeeds, a new worker comes."""
    async with ImageWorkers(ImageWorkersConfig(workers=2)) as workers:
        before = pids(workers)
        for pid in before:
            os.kill(pid, signal.SIGSTOP)
        victim = asyncio.create_task(workers.run("cutout", job))
        other = asyncio.create_task(workers.run("cutout", Job(inputs=job.inputs, output=str(tmp_path / "other.png"))))
        await until(lambda: workers._busy == 2)
        (killed,) = (worker.pid for worker in workers._workers if worker._unfinished == partial(job.output))
        os.kill(killed, signal.SIGKILL)
        with pytest.raises(WorkerCrashed) as crashed:
            await victim
        assert crashed.value.retryable
        for pid in before - {killed}:
            os.kill(pid, signal.SIGCONT)
        assert (await other).width == 400
        await until(lambda: len(pids(workers)) == 2)
        assert len(pids(workers) & before) == 1
        assert (await workers.run("cutout", job)).width == 400
        assert count(workers, "daydo_app_images_jobs_total", "cutout", "crashed") == 1
        assert count(workers, "daydo_app_images_workers_replaced_total") == 1


async def test_a_worker_that_died_idle_harms_no_job(pool: ImageWorkers, job: Job) -> None:
    """The out-of-memory killer took a worker at rest: health says so, the next job gets a fresh one."""
    pid = only(pool)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: pool._alive() == 0)
    assert (await pool.health()).status == "down"
    assert (await pool.run("cutout", job)).width == 400
    assert only(pool) != pid
    assert (await pool.health()).status == "ok"


async def test_a_hung_worker_is_replaced_after_the_timeout(job: Job) -> None:
    """A job that hangs is stopped after timeout_s; the next one works."""
    async with ImageWorkers(ImageWorkersConfig(workers=1, timeout_s=3)) as workers:
        pid = only(workers)
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(JobTimedOut, match="more than 3") as late:
            await workers.run("cutout", job)
        assert late.value.retryable
        assert (await workers.run("inspect", job)).width == 400
        assert only(workers) != pid
        assert is_gone(pid)
        assert count(workers, "daydo_app_images_jobs_total", "cutout", "timed_out") == 1


async def test_cancelling_a_job_frees_its_worker(pool: ImageWorkers, job: Job) -> None:
    """A cancelled job leaves no file, whole or half, and its place goes to the next."""
    pid = only(pool)
    task = await started(pool, job)
    leave_half(partial(job.output))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await pool.run("inspect", job)).width == 400
    assert only(pool) != pid
    assert not exists(partial(job.output))
    assert not exists(job.output)
    assert count(pool, "daydo_app_images_jobs_total", "cutout", "cancelled") == 1


async def test_cancelling_a_waiting_job_costs_nothing(pool: ImageWorkers, job: Job) -> None:
    """A job that never reached a worker leaves the queue and no trace."""
    pid = only(pool)
    first = await started(pool, job)
    waiting = asyncio.create_task(pool.run("inspect", job))
    await until(lambda: pool._waiting == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    os.kill(pid, signal.SIGCONT)
    await first
    assert (pool._waiting, pool._busy, only(pool)) == (0, 0, pid)


async def test_a_full_queue_refuses_and_says_when_to_return(job: Job) -> None:
    """One at work, one waiting, the third is refused; afterwards all is as before."""
    async with ImageWorkers(ImageWorkersConfig(workers=1, queue_max=1)) as workers:
        first = await started(workers, job)
        second = asyncio.create_task(workers.run("inspect", job))
        await until(lambda: workers._waiting == 1)
        with pytest.raises(WorkersBusy) as busy:
            await workers.run("inspect", job)
        assert busy.value.retryable
        assert busy.value.retry_after_s is not None
        assert busy.value.retry_after_s >= 1
        assert count(workers, "daydo_app_images_queue_jobs") == 1
        os.kill(only(workers), signal.SIGCONT)
        await asyncio.gather(first, second)
        assert (await workers.run("inspect", job)).width == 400
        assert count(workers, "daydo_app_images_jobs_total", "inspect", "rejected") == 1


async def test_a_worker_is_renewed_after_its_share(job: Job) -> None:
    """Renewal is planned: no job fails, nothing counts as replaced, and there are no more workers than before."""
    async with ImageWorkers(ImageWorkersConfig(workers=1, jobs_per_worker_max=1)) as workers:
        seen = set()
        for _ in range(3):
            seen |= (before := pids(workers))
            await workers.run("inspect", job)
            await until(lambda before=before: len(pids(workers)) == 1 and not pids(workers) & before)
        assert len(seen | pids(workers)) == 4
        assert count(workers, "daydo_app_images_workers_replaced_total") == 0


async def test_an_old_worker_works_until_its_successor_is_there(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A successor that does not come takes nothing away; an old worker that crashes has one successor, not two."""
    async with ImageWorkers(ImageWorkersConfig(workers=1, jobs_per_worker_max=1)) as workers:
        old, comes, hire = only(workers), asyncio.Event(), workers._hire

        async def hire_later() -> None:
            await comes.wait()
            await hire()

        monkeypatch.setattr(workers, "_hire", hire_later)
        for _ in range(3):
            await workers.run("inspect", job)
            assert only(workers) == old
        os.kill(old, signal.SIGKILL)
        await until(lambda: workers._alive() == 0)
        waiting = asyncio.create_task(workers.run("inspect", job))
        await until(lambda: not pids(workers))
        comes.set()
        await waiting
        assert len(pids(workers)) <= 2  # the successor, and perhaps its own
        assert old not in pids(workers)


async def test_leaving_waits_for_jobs_under_way(job: Job) -> None:
    """Exit lets running and waiting jobs finish, takes no new ones, and ends every process."""
    async with ImageWorkers(ONE) as workers:
        pid = only(workers)
        jobs = [asyncio.create_task(workers.run("cutout", job)) for _ in range(2)]
        await until(lambda: workers._busy == 1)
    assert [task.result().width for task in jobs] == [400, 400]
    assert is_gone(pid)
    with pytest.raises(NotStarted):
        await workers.run("inspect", job)


async def test_leaving_does_not_wait_for_ever(job: Job) -> None:
    """After drain_s what hangs is given up, the waiting are told, nothing outlives the pool."""
    async with ImageWorkers(ImageWorkersConfig(workers=1, drain_s=0.2)) as workers:
        pid = only(workers)
        running = await started(workers, job)
        waiting = asyncio.create_task(workers.run("inspect", job))
        await until(lambda: workers._waiting == 1)
    for task in (running, waiting):
        with pytest.raises(Exception, match="restarting"):
            await task
    assert is_gone(pid)


async def test_use_before_entry_is_an_error(job: Job) -> None:
    """A pool that was not entered says so; one can be entered again."""
    workers = ImageWorkers(ONE)
    with pytest.raises(NotStarted):
        await workers.run("inspect", job)
    assert (await workers.health()).status == "down"
    for _ in range(2):
        async with workers:
            assert (await workers.run("inspect", job)).width == 400


async def test_a_pool_that_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter without what it needs fails the start, and leaves nothing behind."""
    monkeypatch.setattr("reference_app.images.workers.sys.executable", "/bin/false")
    workers = ImageWorkers(ONE)
    with pytest.raises(WorkerCrashed):
        await workers.__aenter__()
    assert pids(workers) == set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signals_for_the_service_do_not_reach_a_job(pool: ImageWorkers, job: Job, number: int) -> None:
    """Ctrl-C or a polite stop of the whole process group lets jobs finish."""
    pid = only(pool)
    assert os.getpgid(pid) != os.getpgid(0)
    os.kill(pid, number)
    assert (await pool.run("cutout", job)).width == 400
    assert only(pool) == pid


async def test_a_worker_has_none_of_the_services_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """What decodes strangers' pictures cannot read the signing key from its environment."""
    monkeypatch.setenv("DAYDO_JWT_SECRET", "a-secret-of-thirty-two-characters")
    async with ImageWorkers(ONE) as workers:
        environment = content_of(f"/proc/{only(workers)}/environ").decode()
    assert "PATH=" in environment
    assert "DAYDO" not in environment


SERVICE = """
import asyncio, sys
from reference_app.images.workers import ImageWorkers, ImageWorkersConfig, Job

async def main():
    async with ImageWorkers(ImageWorkersConfig(workers=2)) as workers:
        jobs = [
            asyncio.create_task(workers.run("cutout", Job(inputs={"photo": sys.argv[1]}, output=f"{sys.argv[2]}{n}")))
            for n in range(40)
        ]
        while workers._busy < 2:
            await asyncio.sleep(0.01)
        print(*(worker.pid for worker in workers._workers), flush=True)
        await asyncio.gather(*jobs)

asyncio.run(main())
"""


def test_no_worker_outlives_a_killed_service(tmp_path: Path) -> None:
    """kill -9 of the service in the middle of jobs: its workers, busy as they are, end at once."""
    photo = tmp_path / "photo"
    picture = Image.new("RGB", (6300, 6300), (40, 90, 60))
    ImageDraw.Draw(picture).ellipse((2000, 1800, 4600, 4400), (240, 200, 80))
    picture.save(photo, "JPEG")  # 40 megapixels: a job of several seconds
    command = [sys.executable, "-c", SERVICE, str(photo), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        workers = [int(pid) for pid in service.stdout.readline().split()]
        assert len(workers) == 2
        assert not any(is_gone(pid) for pid in workers)
        service.kill()
    deadline = time.monotonic() + 2
    while not all(is_gone(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers outlived the service"
        time.sleep(0.02)


def test_the_service_never_loads_opencv() -> None:
    """Importing the pool loads neither OpenCV nor NumPy; only workers pay for them."""
    check = "import sys, reference_app.images.workers; sys.exit(bool({'cv2', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
