"""The one shape of every JSON answer, and how an error becomes an HTTP answer."""

from __future__ import annotations

import math
from typing import Generic, NamedTuple, TypeVar

import msgspec

from .clock import SystemClock, isoformat
from .context import get_context
from .errors import DaydoError, FieldError, InternalError
from .ids import new_id

T = TypeVar("T")


def _request_id() -> str:
    context = get_context()
    return context.request_id if context is not None else new_id("req")


def _timestamp() -> str:
    return isoformat(SystemClock().now_us())


class Envelope(msgspec.Struct, Generic[T], kw_only=True):
    """A successful answer: ``code`` 0, the payload in ``data``, the id to quote to support."""

    code: int = 0
    message: str = "ok"
    data: T
    request_id: str = msgspec.field(default_factory=_request_id)
    timestamp: str = msgspec.field(default_factory=_timestamp)


class Page(msgspec.Struct, Generic[T], kw_only=True, omit_defaults=True):
    """A slice of a list; ``next_cursor`` is absent on the last one."""

    items: list[T]
    next_cursor: str | None = None


class RefusedField(msgspec.Struct, frozen=True):
    """One refused input in an error answer."""

    field: str
    message: str


class ErrorEnvelope(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A refusal: the stable number and dotted name, a message in the client's language."""

    code: int
    message: str
    error: str
    errors: list[RefusedField] = []
    request_id: str
    timestamp: str = msgspec.field(default_factory=_timestamp)


class Rendered(NamedTuple):
    """An HTTP answer: status, headers (lower-case names), UTF-8 JSON body."""

    status: int
    headers: dict[str, str]
    body: bytes


def ok(data: T) -> Envelope[T]:
    """Wrap a payload; request id and time are filled in."""
    return Envelope(data=data)


def render(error: BaseException, locale: str = "", request_id: str = "", status: int = 0) -> Rendered:
    """The HTTP answer for any exception.

    What is not a :class:`DaydoError`, or is one with status 500 (a programmer's mistake), reads as
    ``kernel.internal``: no internal text reaches a client. ``status`` overrides the error's own, for a
    framework's refusals that have no class here.
    """
    if not isinstance(error, DaydoError) or error.status == 500:
        error = InternalError()
    context = get_context()
    locale = locale or (context.locale if context is not None else "")
    code = error.code if not status else status * 100 + error.code % 100
    body = ErrorEnvelope(
        code=code,
        message=error.text(locale),
        error=error.name,
        errors=[RefusedField(field.field, _in(locale, field)) for field in error.fields],
        request_id=request_id or _request_id(),
    )
    headers = {"content-type": "application/json", "content-language": "en" if locale.startswith("en") else "zh-CN"}
    if error.retryable or error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s or 0)))
    return Rendered(status or error.status, headers, msgspec.json.encode(body))


def _in(locale: str, field: FieldError) -> str:
    return field.en if locale.startswith("en") else field.zh
