"""Who is asking, for log lines and error bodies only.

Business values travel as arguments; nothing in daydo decides by what stands here.
"""

from __future__ import annotations

from contextvars import ContextVar

import msgspec

DEFAULT_LOCALE = "zh-CN"


class RequestContext(msgspec.Struct, kw_only=True, eq=False, weakref=True):
    """One request as the logs see it; the outermost ASGI wrapper makes it, guards fill in ``subject``."""

    request_id: str
    locale: str = DEFAULT_LOCALE
    trace_id: str = ""
    tenant: str = ""
    subject: str = ""


_current: ContextVar[RequestContext | None] = ContextVar("daydo_request", default=None)

get_context = _current.get
set_context = _current.set
reset_context = _current.reset


def negotiate_locale(accept_language: str) -> str:
    """The best of ``zh-CN`` and ``en`` for an Accept-Language header (RFC 9110 §12.5.4); Chinese on a tie."""
    best, locale = 0.0, DEFAULT_LOCALE
    for part in accept_language[:256].split(","):
        tag, _, parameter = part.strip().partition(";")
        try:
            quality = float(parameter.strip().removeprefix("q=")) if parameter else 1.0
        except ValueError:
            continue
        language = tag.strip().lower().split("-")[0]
        if language in ("zh", "en") and quality > best:
            best, locale = quality, "en" if language == "en" else DEFAULT_LOCALE
    return locale
