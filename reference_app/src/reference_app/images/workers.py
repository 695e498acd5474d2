"""A small pool of processes that work on pictures, so that the event loop stays free and a bad picture harms
one job at most.

Own code because ``concurrent.futures`` breaks the whole pool when one process dies. A worker is a fresh
interpreter (never a fork of this threaded one), does one job at a time, and is spoken to in JSON lines: file
names cross the pipe, not pixels, and nothing a compromised decoder could say is executed here. A worker that
crashed, hung or was abandoned is killed and replaced; the others do not notice. Each lives as long as this
process holds the other end of its standard input (see ``worker_process``), so none outlives the service.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from daydo_kernel import Clock, Config, Draining, EventSink, Health, InternalError, Metrics, Part

from .errors import ImageError, JobTimedOut, WorkerCrashed, WorkersBusy
from .jobs import OPERATIONS, Done, Failed, Job, Operation, Output, Progress, Refused, Reply, Report, Request, partial
from .photo import PhotoLimits

log = logging.getLogger("daydo")

Outcome = Literal["done", "refused", "failed", "crashed", "timed_out", "cancelled", "rejected"]
OUTCOMES: tuple[Outcome, ...] = ("done", "refused", "failed", "crashed", "timed_out", "cancelled", "rejected")
# A process that decodes strangers' pictures gets none of the service's secrets.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "TMPDIR")
# Pillow warns of strangers' broken metadata on standard error, which is the service's log of JSON lines.
_FIXED = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def _unheard(share: float) -> None:
    """The default of ``report``."""


class ImageWorkersConfig(Config, frozen=True, kw_only=True):
    """Two workers, so that an upload's check need not wait for a long job. A worker takes 0.1 GB, and up
    to 0.6 GB for moments while it works on 40 megapixels.
    """

    workers: Annotated[int, Meta(ge=1, le=64, description="processes that work on pictures", examples=[4])] = 2
    timeout_s: Annotated[float, Meta(gt=0, le=600, description="how long one job may run", examples=[30.0])] = 30.0
    queue_max: Annotated[int, Meta(ge=0, le=10_000, description="jobs that may wait", examples=[64])] = 256
    jobs_per_worker_max: Annotated[
        int, Meta(ge=1, description="a worker is renewed after this many jobs", examples=[500])
    ] = 500
    nice: Annotated[int, Meta(ge=0, le=19, description="how far workers stand back for the service")] = 5
    start_timeout_s: Annotated[float, Meta(gt=0, le=120, description="how long a worker may take to be ready")] = 30.0
    drain_s: Annotated[float, Meta(ge=0, le=120, description="how long a stop waits for jobs under way")] = 10.0
    photo_bytes_max: Annotated[int, Meta(ge=1)] = 10 * 1024 * 1024
    photo_pixels_max: Annotated[
        int, Meta(ge=1, le=200_000_000, description="a picture with more pixels is refused")
    ] = 40_000_000


class ImageWorkers(Part):
    """``async with ImageWorkers() as workers: await workers.run("cutout", Job(inputs={"photo": …}, output=…))``."""

    def __init__(
        self,
        config: ImageWorkersConfig = ImageWorkersConfig(),  # noqa: B008 - frozen
        *,
        clock: Clock | None = None,
        events: EventSink | None = None,
    ) -> None:
        super().__init__(drain_s=config.drain_s)
        self._config = config
        self._limits = PhotoLimits(bytes_max=config.photo_bytes_max, pixels_max=config.photo_pixels_max)
        self._workers: set[_Worker] = set()
        self._idle: asyncio.Queue[_Worker | None] = asyncio.Queue()
        self._quiet = asyncio.Event()
        self._waiting = self._busy = 0
        self._leaving = False
        self.metrics = Metrics("daydo_app_images")
        jobs = self.metrics.counter("jobs_total", "Picture jobs by how they ended.", labels=("operation", "outcome"))
        self._jobs = {(name, how): jobs.cell(name, how) for name in OPERATIONS for how in OUTCOMES}
        seconds = self.metrics.histogram("job_seconds", "Time of a job in its worker.", labels=("operation",))
        self._seconds = {name: seconds.cell(name) for name in OPERATIONS}
        self._replaced = self.metrics.counter("workers_replaced_total", "Workers that died or were killed.").cell()
        self.metrics.gauge("queue_jobs", "Jobs that wait for a worker.").cell().follow(lambda: self._waiting)
        self.metrics.gauge("workers_alive", "Worker processes there are.").cell().follow(self._alive)

    async def run(self, operation: Operation, job: Job, report: Report = _unheard) -> Output:
        """Do ``job`` in a worker, which tells ``report`` how far it is; cancelling the call kills the worker at it.

        A job waits for at most ``queue_max`` others, then runs for at most ``timeout_s``. The result appears
        under its final name or not at all; doing a job again writes the same file again.

        Raises:
            ImageError: the picture or a parameter is refused (4xx).
            WorkersBusy: ``queue_max`` jobs wait already; retryable after ``retry_after_s``.
            WorkerCrashed, JobTimedOut: retryable; nothing was written.
            Draining: the pool is being left.
            InternalError: a fault of ours; the log has the trace.
        """
        if self._leaving and self._workers:
            raise Draining
        self._require_started()
        worker = await self._take(operation)
        outcome: Outcome = "cancelled"
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._config.timeout_s):
                reply = await worker.call(Request(operation=operation, job=job, limits=self._limits), report)
            outcome, result = _outcome(reply)
        except TimeoutError:
            outcome, result = "timed_out", JobTimedOut(timeout_s=self._config.timeout_s)
        except (ConnectionError, EOFError, ValueError):
            outcome, result = "crashed", Draining() if self._leaving else WorkerCrashed()
        finally:
            self._seconds[operation].observe(time.monotonic() - started)
            self._jobs[operation, outcome].inc()
            self._give_back(worker, whole=outcome in ("done", "refused", "failed"))
        if isinstance(result, Output):
            return result
        raise result

    async def health(self) -> Health:
        """Degraded while a worker is being replaced; down without any."""
        alive = self._alive()
        status: Literal["ok", "degraded", "down"] = "ok" if alive >= self._config.workers else "degraded"
        detail: dict[str, str | int | float] = {"alive": alive, "busy": self._busy, "waiting": self._waiting}
        return Health(status=status if alive and self._running else "down", detail=detail)

    # ---- lifecycle -------------------------------------------------------------------------------------

    async def _start(self) -> None:
        self._idle, self._leaving = asyncio.Queue(), False
        hired = await asyncio.gather(*(self._hire() for _ in range(self._config.workers)), return_exceptions=True)
        for failure in hired:
            if isinstance(failure, BaseException):
                raise failure

    async def _drain(self) -> None:
        self._leaving = True
        self._note_quiet()
        await self._quiet.wait()

    async def _close(self) -> None:
        self._leaving = True
        for _ in range(self._waiting):
            self._idle.put_nowait(None)
        await asyncio.gather(*(worker.end() for worker in self._workers))
        self._workers.clear()

    def _note_quiet(self) -> None:
        if self._busy or self._waiting:
            self._quiet.clear()
        else:
            self._quiet.set()

    # ---- workers ---------------------------------------------------------------------------------------

    async def _take(self, operation: Operation) -> _Worker:
        """The next free worker, which from now on counts as busy."""
        if self._idle.empty() and self._waiting >= self._config.queue_max:
            self._jobs[operation, "rejected"].inc()
            raise WorkersBusy(retry_after_s=self._expected_wait_s())
        self._waiting += 1
        try:
            while True:
                worker = await self._idle.get()
                if worker is None:
                    raise Draining
                if worker.alive:
                    self._busy += 1
                    worker.at_work = True
                    return worker
                self._replace(worker, planned=worker.is_renewed)
        finally:
            self._waiting -= 1
            self._note_quiet()

    def _give_back(self, worker: _Worker, *, whole: bool) -> None:
        self._busy -= 1
        self._note_quiet()
        worker.jobs += 1
        worker.at_work = False
        if not whole or not worker.alive or worker.is_retired:
            self._replace(worker, planned=whole)
            return
        is_old = worker.jobs >= self._config.jobs_per_worker_max
        if is_old and not worker.is_renewed and not self._leaving:
            worker.is_renewed = True
            self._spawn(self._renew(worker), "renew")
        self._idle.put_nowait(worker)

    def _replace(self, worker: _Worker, *, planned: bool = False) -> None:
        worker.kill()
        if not planned:
            self._replaced.inc()
        if not self._leaving:
            self._spawn(self._succeed(worker), "replace")

    async def _succeed(self, worker: _Worker) -> None:
        await worker.end()
        self._workers.discard(worker)
        if not worker.is_renewed:
            await self._hire_at_last()

    async def _renew(self, worker: _Worker) -> None:
        """The successor comes first: on busy processors that takes seconds, and workers grow old together."""
        await self._hire_at_last()
        worker.is_retired = True
        if not worker.at_work:
            self._replace(worker, planned=True)

    async def _hire_at_last(self) -> None:
        pause_s = 0.5
        while True:
            try:
                return await self._hire()
            except (WorkerCrashed, OSError):
                log.warning("no image worker can be started; trying again in %s s", pause_s, exc_info=True)
            await asyncio.sleep(pause_s)
            pause_s = min(30.0, 2 * pause_s)

    async def _hire(self) -> None:
        worker = await _Worker.start(self._config)
        self._workers.add(worker)
        try:
            async with asyncio.timeout(self._config.start_timeout_s):
                await worker.ready()
        except BaseException as error:
            await worker.end()
            self._workers.discard(worker)
            if isinstance(error, (TimeoutError, EOFError, ConnectionError)):
                raise WorkerCrashed from error
            raise
        self._idle.put_nowait(worker)

    def _alive(self) -> int:
        return sum(worker.alive for worker in self._workers)

    def _expected_wait_s(self) -> float:
        """Until a place in the queue is free, going by the jobs so far."""
        spent = sum(cell.sum for cell in self._seconds.values())
        done = sum(sum(cell.counts) for cell in self._seconds.values())
        return max(1.0, spent / done / self._config.workers) if done else 1.0


def _outcome(reply: Reply) -> tuple[Outcome, Output | Exception]:
    match reply:
        case Done(output):
            return "done", output
        case Refused(code, facts, fields):
            known = {error.code: error for error in ImageError.__subclasses__()}
            return "refused", known[code](fields=fields, **facts)
        case Failed(trace):
            log.error("an image worker failed:\n%s", trace)
            return "failed", InternalError()


class _Worker:
    """One process, as seen from here."""

    _encoder = msgspec.json.Encoder()
    _decoder: msgspec.json.Decoder[Progress | Reply] = msgspec.json.Decoder(Progress | Reply)

    def __init__(self, process: Process) -> None:
        if process.stdin is None or process.stdout is None:
            raise TypeError("a worker is spoken to by pipes")
        self._process, self._requests, self._replies = process, process.stdin, process.stdout
        self._unfinished = ""
        self._killed = False
        self.jobs = 0
        self.at_work = False
        self.is_renewed = False  # a successor is on its way
        self.is_retired = False  # and there

    @classmethod
    async def start(cls, config: ImageWorkersConfig) -> _Worker:
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # the working directory is no place to import from
            "-m",
            "reference_app.images.worker_process",
            str(config.nice),
            stdin=PIPE,
            stdout=PIPE,
            env=environment | _FIXED,
            start_new_session=True,  # Ctrl-C at the terminal is for the service
        )
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None and not self._killed

    async def ready(self) -> None:
        """Raises EOFError if the process ends before it says so."""
        await self._line()

    async def call(self, request: Request, report: Report) -> Reply:
        """One job there and back. Raises EOFError or ConnectionError if the process ends meanwhile."""
        self._unfinished = partial(request.job.output)
        self._requests.write(self._encoder.encode(request) + b"\n")
        await self._requests.drain()
        while isinstance(message := self._decoder.decode(await self._line()), Progress):
            report(message.share)
        self._unfinished = ""
        return message

    async def _line(self) -> bytes:
        line = await self._replies.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        return line

    def kill(self) -> None:
        if self.alive:
            self._killed = True
            self._process.kill()

    async def end(self) -> None:
        """Gone, and with it what it left half written."""
        self.kill()
        self._requests.close()
        await self._process.wait()
        if self._unfinished:
            await asyncio.to_thread(Path(self._unfinished).unlink, missing_ok=True)
            self._unfinished = ""
