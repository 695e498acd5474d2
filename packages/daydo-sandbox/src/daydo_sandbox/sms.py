"""An SMS gateway as small as one can be, with the habit of the large ones: a refusal is a word inside HTTP 200.

``POST /sms/messages`` with a bearer token, ``{"to", "text", "key"}``. A ``key`` that was seen before gets the first
answer again and no second message.
"""

from __future__ import annotations

import secrets
from collections import deque
from typing import Annotated

import msgspec
from msgspec import Meta

from daydo_kernel import Clock, mask_phone

from .config import SandboxConfig
from .faults import Fault

_NO_FAULT = Fault()


class MessageIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client posts."""

    to: Annotated[str, Meta(pattern=r"^\+?[0-9]{7,15}(?!\n)$")]
    text: Annotated[str, Meta(min_length=1, max_length=500)]
    key: Annotated[str, Meta(min_length=1, max_length=64)]

    def __repr__(self) -> str:
        return f"MessageIn(to={mask_phone(self.to)!r}, ***)"


class Message(msgspec.Struct, frozen=True):
    """What has arrived on a phone."""

    id: str
    to: str
    text: str
    key: str
    at_us: int

    def __repr__(self) -> str:
        return f"Message(id={self.id!r}, to={mask_phone(self.to)!r}, ***)"


class SmsAnswer(msgspec.Struct, frozen=True):
    """What the gateway says: ``status`` is ``ok``, or why not (``limited``, ``number_refused``, …)."""

    status: str
    message_id: str = ""


class SmsSimulator:
    """``sandbox.sms``: a gateway, and the phones behind it."""

    def __init__(self, config: SandboxConfig, clock: Clock) -> None:
        self.token = config.sms_token or secrets.token_urlsafe(24)
        self._clock = clock
        self._arrived: deque[Message] = deque(maxlen=config.sms_messages_max)
        self._answers: dict[str, SmsAnswer] = {}
        self._keys_max = config.sms_messages_max

    def messages(self, to: str = "") -> list[Message]:
        """What has arrived, newest first; on one phone, if told which."""
        return [message for message in reversed(self._arrived) if to in ("", message.to)]

    def clear(self) -> None:
        """Forget all messages and keys."""
        self._arrived.clear()
        self._answers.clear()

    def knows(self, authorization: str) -> bool:
        """Whether a request carries the token."""
        return secrets.compare_digest(authorization.encode(), f"Bearer {self.token}".encode())

    def accept(self, posted: MessageIn, fault: Fault = _NO_FAULT) -> SmsAnswer:
        """Deliver a message, once per key."""
        if (before := self._answers.get(posted.key)) is not None:
            return before
        answer = SmsAnswer("ok", f"sms_{secrets.token_hex(8)}")
        copies = 0 if fault.lost else 2 if fault.duplicate else 1
        for _ in range(copies):
            self._arrived.append(Message(answer.message_id, posted.to, posted.text, posted.key, self._clock.now_us()))
        while len(self._answers) >= self._keys_max:
            del self._answers[next(iter(self._answers))]
        self._answers[posted.key] = answer
        return answer
