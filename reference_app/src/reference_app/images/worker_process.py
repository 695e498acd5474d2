"""One worker: ``python -m reference_app.images.worker_process NICE``; requests on standard input, one a line.

It lives as long as the other end of its standard input is open, whatever happens to the service: a thread
waits there, so that a worker in the middle of a job goes too. Signals meant for the service do not reach it.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import traceback
from typing import BinaryIO

import cv2
import msgspec

from .errors import ImageError
from .jobs import Done, Failed, Progress, Refused, Reply, Report, Request
from .operations import perform

READY = b"ready\n"
TRACE_CHARACTERS_MAX = 8_000


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.nice(int(sys.argv[1]))
    cv2.setNumThreads(1)
    # Whatever a native library prints must not pass for an answer.
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, requests), daemon=True).start()
    replies.write(READY)
    decoder, encoder = msgspec.json.Decoder(Request), msgspec.json.Encoder()

    def send(message: Progress | Reply) -> None:
        replies.write(encoder.encode(message) + b"\n")

    while True:
        send(_answer(decoder.decode(requests.get()), lambda share: send(Progress(share))))


def _listen(source: BinaryIO, requests: queue.SimpleQueue[bytes]) -> None:
    for line in source:
        requests.put(line)
    os._exit(0)


def _answer(request: Request, report: Report) -> Reply:
    try:
        return Done(perform(request, report))
    except ImageError as error:
        return Refused(error.code, error.facts, error.fields)
    except MemoryError:
        raise  # the process is not to be trusted any more
    except Exception:
        return Failed(traceback.format_exc()[-TRACE_CHARACTERS_MAX:])


if __name__ == "__main__":
    main()
