"""One JSON object per line, redacted, never longer than a pipe can take in one piece.

Several workers share one pipe to the log collector. The kernel keeps writes apart only up to 4,096 bytes
(PIPE_BUF), so no line is longer and :class:`Lines` never writes more than that at once, in whole lines.

Access lines are buffered; an application's own line pushes out everything before it, so the order holds and
a crash loses at most the access lines of the last ``flush_s``.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from typing import Any, BinaryIO, TextIO, cast

import msgspec

from daydo_kernel import get_context, isoformat, redact, redact_text

MAX_LINE_BYTES = 4_096
_BUFFER_BYTES = 64 * 1024
_CUT = "…"
_CUTS = (3_000, 1_500, 700, 200)  # a character is at most 6 bytes of JSON: two texts of 200 always fit

# What a pattern for values cannot know: a secret named by the word before it, and a password inside a URL.
_NAMED = re.compile(
    r"((?:pass(?:word|wd|phrase)|secret|token|api_?key|private_?key|pepper|session_?key|ticket|signature)\w*"
    r"[\"']?\s*[:=]\s*b?)(\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|[^\s,;&)\]}]+)",
    re.IGNORECASE,
)
_HEADER = re.compile(r"((?:authorization|cookie)[\"']?\s*[:=,]\s*b?[\"']?)[^\r\n\"']+", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(://[^\s/:@]*:)[^\s/@]+(?=@)")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class LogLine(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line of an application's log."""

    time: str
    level: str
    logger: str
    service: str
    request_id: str = ""
    trace_id: str = ""
    message: str
    exception: str = ""
    extra: Any = None


class Lines:
    """Whole lines to one stream, shared by the access log and ``logging``; safe to use from any thread.

    ``lost`` counts lines the stream refused: a full disk or a dead collector never fails a request.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.RLock()
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self.lost = 0

    def write(self, line: bytes) -> None:
        """Queue one line (its newline is added here); a full buffer is written out."""
        with self._lock:
            self._pending.append(line)
            self._pending_bytes += len(line)
            if self._pending_bytes >= _BUFFER_BYTES:
                self.flush()

    def flush(self) -> None:
        """Write out what is queued, in pieces of whole lines of at most 4,096 bytes."""
        with self._lock:
            lines, self._pending, self._pending_bytes = self._pending, [], 0
            piece: list[bytes] = []
            size = 0
            for line in lines:
                if size + len(line) + 1 > MAX_LINE_BYTES:
                    self._put(piece)
                    piece, size = [], 0
                piece.append(line)
                size += len(line) + 1
            self._put(piece)

    def _put(self, piece: list[bytes]) -> None:
        if not piece:
            return
        try:
            self._stream.write(b"\n".join(piece) + b"\n")
            self._stream.flush()
        except (OSError, ValueError):  # ValueError: the stream is closed
            self.lost += len(piece)


class JsonFormatter(logging.Formatter):
    """Log records as :class:`LogLine`: message, exception and ``extra=`` redacted, cut to fit 4,096 bytes."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        context = get_context()
        line = LogLine(
            time=isoformat(int(record.created * 1_000_000)),
            level=record.levelname,
            logger=record.name,
            service=self._service,
            request_id=context.request_id if context is not None else "",
            trace_id=context.trace_id if context is not None else "",
            message=scrub(_message(record)),
            exception=scrub(self._exception(record)),
            extra=_extra(record),
        )
        return encode_line(line).decode()

    def _exception(self, record: logging.LogRecord) -> str:
        parts = []
        if record.exc_info:
            parts.append(self.formatException(record.exc_info))
        if record.stack_info:
            parts.append(record.stack_info)
        return "\n".join(parts)


class LinesHandler(logging.Handler):
    """A logging handler over :class:`Lines`; every record is written at once."""

    def __init__(self, lines: Lines) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.write(self.format(record).encode())
            self._lines.flush()
        except Exception:
            self._lines.lost += 1  # logging's own handleError prints the arguments in clear

    def flush(self) -> None:
        self._lines.flush()


def configure_logging(level: str = "INFO", stream: TextIO | BinaryIO | None = None, *, service: str = "daydo") -> Lines:
    """Send the root logger to ``stream`` (default: standard error) as JSON lines; call it once, in ``main``.

    Replaces the root's handlers. Hand the result to ``Observe(…, lines=…)`` so that access lines and
    application lines keep their order. With uvicorn pass ``log_config=None, access_log=False``.

    Raises:
        ValueError: ``level`` is not a name that ``logging`` knows.
    """
    lines = Lines(binary(stream if stream is not None else sys.stderr))
    handler = LinesHandler(lines)
    handler.setFormatter(JsonFormatter(service))
    root = logging.getLogger()
    root.setLevel(level)
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    return lines


def binary(stream: TextIO | BinaryIO) -> BinaryIO:
    """The byte stream below a text stream."""
    return cast("BinaryIO", getattr(stream, "buffer", stream))


def scrub(text: str) -> str:
    """:func:`daydo_kernel.redact_text`, and secrets that text names: ``password=…``, ``mysql://u:…@host``."""
    if not text:
        return text
    text = _URL_PASSWORD.sub(r"\1***", text)
    text = _HEADER.sub(r"\1***", text)
    return redact_text(_NAMED.sub(r"\1***", text))


def encode_line(line: LogLine) -> bytes:
    """``line`` as JSON that fits 4,096 bytes with its newline: ``extra`` goes first, then the texts are cut.

    An exception keeps its end, which names it; a message keeps its start.
    """
    encoded = _encode(line)
    if len(encoded) >= MAX_LINE_BYTES and line.extra is not None:
        line.extra = _CUT
        encoded = _encode(line)
    for limit in _CUTS:
        if len(encoded) < MAX_LINE_BYTES:
            break
        line.message = line.message if len(line.message) <= limit else line.message[:limit] + _CUT
        line.exception = line.exception if len(line.exception) <= limit else _CUT + line.exception[-limit:]
        encoded = _encode(line)
    return encoded


def _encode(line: LogLine) -> bytes:
    try:
        return msgspec.json.encode(line)
    except UnicodeEncodeError:  # a lone surrogate, as in the name of a file that is not UTF-8
        line.message, line.exception, line.extra = printable(line.message), printable(line.exception), _CUT
        return msgspec.json.encode(line)


def printable(text: str) -> str:
    """``text`` with lone surrogates escaped, so that it can be UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def _message(record: logging.LogRecord) -> str:
    # Dictionaries among the arguments are redacted by key before they become text.
    arguments = record.args
    if not arguments:
        return str(record.msg)
    safe = redact(arguments)
    try:
        return str(record.msg) % (tuple(safe) if isinstance(safe, list) else safe)
    except Exception as error:
        return f"{record.msg} [its arguments do not fit: {type(error).__name__}]"


def _extra(record: logging.LogRecord) -> Any:
    fields = {name: value for name, value in vars(record).items() if name not in _STANDARD}
    if not fields:
        return None
    try:
        # Structs become dictionaries first: redaction looks at keys.
        plain = msgspec.to_builtins(fields, str_keys=True, enc_hook=str)
    except Exception as error:
        return f"not loggable: {type(error).__name__}"
    return _scrub_all(redact(plain))


def _scrub_all(value: Any) -> Any:
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, dict):
        return {key: _scrub_all(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_scrub_all(item) for item in value]
    return value
