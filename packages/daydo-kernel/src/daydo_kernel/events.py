"""What happened, said to whoever listens: an audit log, an outbox, a test."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A fact in the past tense: ``quota.hold_confirmed`` of account ``u_7``.

    ``data`` holds JSON values only and no secret.
    """

    name: str
    tenant: str = ""
    subject: str = ""
    data: dict[str, Any] = {}


class EventSink(Protocol):
    """Where a noun's events go.

    With ``tx`` the event commits with the change or not at all, and a failure to store it fails the change;
    without ``tx`` emitting never raises and may lose events in a crash.
    """

    async def emit(self, event: Event, tx: Any = None) -> None: ...


class NoEvents:
    """The default sink: nobody listens."""

    async def emit(self, event: Event, tx: Any = None) -> None:
        return None
