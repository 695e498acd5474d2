"""How the parts are, asked for rarely and within a bound, whoever asks how often.

Three questions, three pages. *Live*: should this process be restarted? It depends on nothing, because one
database outage must not restart every worker. *Ready*: should the balancer send requests here? *Summary*: what is
wrong? That one is for people and alerts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

import msgspec

from daydo_kernel import Envelope, Health, Part, get_context, redact

from .errors import Unhealthy

log = logging.getLogger("daydo.observe")


class Probe:
    """One part's health: at most ``timeout_s`` per look, at most one look per ``cache_s``, one at a time."""

    def __init__(self, part: Part, *, timeout_s: float, cache_s: float, seconds: Callable[[], float]) -> None:
        self._part = part
        self._timeout_s = timeout_s
        self._cache_s = cache_s
        self._seconds = seconds
        self._lock = asyncio.Lock()
        self._known = Health(status="down")
        self._fresh_until = float("-inf")

    async def check(self) -> Health:
        """The part's health, at most ``cache_s`` old; a part that does not answer in time is down."""
        async with self._lock:
            if self._seconds() >= self._fresh_until:
                self._known = await self._ask()
                self._fresh_until = self._seconds() + self._cache_s
            return self._known

    async def _ask(self) -> Health:
        try:
            async with asyncio.timeout(self._timeout_s):
                health = await self._part.health()
        except TimeoutError:
            return Health(status="down", detail={"no_answer_s": self._timeout_s})
        except Exception:
            log.exception("the health of %s raised", type(self._part).__name__)
            return Health(status="down")
        return Health(status=health.status, detail=redact(health.detail))


class HealthReport(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The ``data`` of a health page."""

    status: str
    service: str
    parts: dict[str, Health] = {}


class HealthAnswer(Envelope[HealthReport], kw_only=True):
    """The envelope of a health page: an unhealthy one is an error that still carries its data."""

    error: str | msgspec.UnsetType = msgspec.UNSET


def answer(report: HealthReport, error: Unhealthy | None = None) -> bytes:
    """The body of a health page."""
    if error is None:
        return msgspec.json.encode(HealthAnswer(data=report))
    context = get_context()
    message = error.text(context.locale if context is not None else "")
    return msgspec.json.encode(HealthAnswer(code=error.code, message=message, error=error.name, data=report))


def part_names(parts: Sequence[Part] | Mapping[str, Part]) -> dict[str, Part]:
    """The parts under the names their pages have: ``daydo_db.Database`` → ``db``, your ``Stock`` → ``stock``.

    Raises:
        ValueError: two parts have one name; pass a mapping with names of your own.
    """
    if isinstance(parts, Mapping):
        return dict(parts)
    named: dict[str, Part] = {}
    for part in parts:
        name = _name(type(part))
        if name in named:
            raise ValueError(f"two parts are called {name!r}; name them yourself: parts={{{name!r}: …, …}}")
        named[name] = part
    return named


def _name(noun: type[Part]) -> str:
    package = noun.__module__.partition(".")[0]
    return package.removeprefix("daydo_") if package.startswith("daydo_") else noun.__name__.lower()
