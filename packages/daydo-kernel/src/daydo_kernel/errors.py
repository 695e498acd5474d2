"""Errors that carry their own number, name and words.

An error is declared on its class and nowhere else::

    class HoldExpired(QuotaError, code=40931, name="quota.hold_expired",
                      zh="预留 {hold_id} 已过期，请重新发起。",
                      en="Hold {hold_id} has expired; reserve again or raise hold_ttl_s."):
        hold_id: str

    raise HoldExpired(hold_id="hold_01J…")

``code`` is the HTTP status × 100 + nn. The ranges of nn: 00 kernel, 01-24 auth, 25-29 db and redis,
30-39 quota, 40-49 traffic and cache, 50-59 pipeline, 60-79 reference app, 80-99 yours.

A class without ``code`` is a family to catch by; raising it is a ``TypeError``. Texts name their facts in
braces; each fact is a keyword of the constructor and an attribute of the error. ``str(error)`` is the English
text and, for logs, the facts it does not name. :func:`daydo_kernel.render` makes the HTTP answer.
"""

from __future__ import annotations

from string import Formatter
from typing import Any, ClassVar

import msgspec

_declared: dict[int | str, type[DaydoError]] = {}


class FieldError(msgspec.Struct, frozen=True):
    """One refused input: ``field`` is its path in the request (``photo``, ``items[2].sku``)."""

    field: str
    zh: str
    en: str


class DaydoError(Exception):
    """Root of every error daydo raises.

    Attributes:
        code: HTTP status × 100 + nn; unique in the process.
        name: dotted name that clients switch on; never changes.
        zh, en: texts with ``{fact}`` places.
        retryable: whether the same call may succeed later, unchanged.
        retry_after_s: seconds to wait before that, where known.
        fields: refused inputs, for errors of validation.
    """

    code: ClassVar[int] = 0
    name: ClassVar[str] = ""
    zh: ClassVar[str] = ""
    en: ClassVar[str] = ""
    retryable: ClassVar[bool] = False

    def __init_subclass__(
        cls,
        *,
        code: int = 0,
        name: str = "",
        zh: str = "",
        en: str = "",
        retryable: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)
        cls.code, cls.name, cls.zh, cls.en, cls.retryable = code, name, zh, en, retryable
        if code or name or zh or en:
            _declare(cls)

    def __init__(
        self,
        *,
        retry_after_s: float | None = None,
        fields: tuple[FieldError, ...] = (),
        **facts: object,
    ) -> None:
        if not self.code:
            raise TypeError(f"{type(self).__name__} is a family of errors; raise one of its subclasses")
        self.retry_after_s = retry_after_s
        self.fields = fields
        self.facts = facts
        for fact, value in facts.items():
            setattr(self, fact, value)
        unsaid = ", ".join(f"{fact}={value}" for fact, value in facts.items() if f"{{{fact}" not in self.en)
        super().__init__(f"{self.text('en')} ({unsaid})" if unsaid else self.text("en"))

    @property
    def status(self) -> int:
        """The HTTP status: ``code // 100``."""
        return self.code // 100

    def text(self, locale: str) -> str:
        """The message in ``locale`` (anything that is not ``en…`` reads Chinese)."""
        template = self.en if locale.startswith("en") else self.zh
        try:
            return template.format(**self.facts)
        except KeyError as missing:
            raise TypeError(f"{type(self).__name__} needs the fact {missing}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        # Keyword-only constructors do not survive Exception's own pickling; process pools need this.
        return _rebuild, (type(self), self.retry_after_s, self.fields, self.facts)


def _rebuild(
    cls: type[DaydoError], retry_after_s: float | None, fields: tuple[FieldError, ...], facts: dict[str, object]
) -> DaydoError:
    return cls(retry_after_s=retry_after_s, fields=fields, **facts)


def _declare(cls: type[DaydoError]) -> None:
    if not (cls.code and cls.name and cls.zh and cls.en):
        raise TypeError(f"{cls.__name__}: code, name, zh and en are declared together")
    if not 400 <= cls.code // 100 <= 599:
        raise TypeError(f"{cls.__name__}: code {cls.code} is not an HTTP error status × 100 + nn")
    if _placeholders(cls.zh) != _placeholders(cls.en):
        raise TypeError(f"{cls.__name__}: zh and en name different facts")
    for fact in _placeholders(cls.en):
        if hasattr(DaydoError, fact) or fact in ("retry_after_s", "fields", "facts"):
            raise TypeError(f"{cls.__name__}: the fact {fact!r} would hide an attribute of every error; rename it")
    for key in (cls.code, cls.name):
        other = _declared.get(key)
        if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"{cls.__name__}: {key} is taken by {other.__module__}.{other.__qualname__}")
        _declared[key] = cls


def _placeholders(template: str) -> set[str]:
    return {field for _, field, _, _ in Formatter().parse(template) if field}


def declared_errors() -> list[type[DaydoError]]:
    """Every error class that has been imported, by code: the source of the reference page."""
    return sorted(set(_declared.values()), key=lambda error: error.code)


class KernelError(DaydoError):
    """What any part of daydo, or the HTTP edge itself, may raise."""


class BadRequest(
    KernelError,
    code=40000,
    name="kernel.bad_request",
    zh="请求格式不正确。",
    en="The request cannot be read.",
):
    """The body, query or headers are not of the form the route takes; ``fields`` says where and why."""


class NotFound(KernelError, code=40400, name="kernel.not_found", zh="资源不存在。", en="There is nothing here."):
    """No such route or resource, or not yours."""


class MethodNotAllowed(
    KernelError,
    code=40500,
    name="kernel.method_not_allowed",
    zh="该地址不支持此请求方法。",
    en="This address does not take that method.",
):
    """The path exists, the method does not."""


class PayloadTooLarge(
    KernelError, code=41300, name="kernel.payload_too_large", zh="请求体过大。", en="The request body is too large."
):
    """The body exceeds the route's limit."""


class UnsupportedMediaType(
    KernelError,
    code=41500,
    name="kernel.unsupported_media_type",
    zh="不支持的内容类型。",
    en="This content type is not accepted here.",
):
    """The Content-Type is not one that the route reads."""


class RequestRefused(
    KernelError,
    code=49900,
    name="kernel.request_refused",
    zh="请求被拒绝。",
    en="The request was refused.",
):
    """A framework answered 4xx for a reason of its own; rendered with that status."""


class InternalError(
    KernelError,
    code=50000,
    name="kernel.internal",
    zh="服务器内部错误，请稍后再试。",
    en="Something went wrong on our side; please try again later.",
):
    """An unexpected error. Every 500 is rendered as this one, so that nothing internal leaks."""


class NotStarted(
    KernelError,
    code=50001,
    name="kernel.not_started",
    zh="{part} 尚未启动，请先 async with 进入。",
    en="{part} is not running; enter it first: async with {part}(…) as part.",
):
    """A part was used before ``async with`` or after its exit."""

    part: str


class Draining(
    KernelError,
    code=50300,
    name="kernel.draining",
    zh="服务正在重启，请稍后重试。",
    en="The service is restarting; please retry shortly.",
    retryable=True,
):
    """The part is on its way out and takes no new work."""
