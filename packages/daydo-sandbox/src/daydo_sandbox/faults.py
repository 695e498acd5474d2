"""What goes wrong on demand: each fault waits for the next requests of its API and is used up by them."""

from __future__ import annotations

from collections import deque
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Api = Literal["wechat", "sms"]


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way to misbehave, for ``times`` requests.

    Attributes:
        times: requests that meet it.
        delay_s: wait so long before anything else.
        status: answer with this HTTP status.
        errcode: say this error instead: a number for WeChat, a word for the SMS gateway.
        body: answer with this text, whatever it is.
        body_bytes: answer with so many bytes of nothing.
        duplicate: WeChat takes a code again that has been used; the gateway delivers a message twice.
        lost: the gateway says ok and delivers nothing.
        late: what was asked is done, and only then status, errcode or body is answered: the ambiguous failure.
    """

    times: Annotated[int, Meta(ge=1, le=10_000)] = 1
    delay_s: Annotated[float, Meta(ge=0, le=600)] = 0.0
    status: Annotated[int, Meta(ge=200, le=599)] = 200
    errcode: int | str | None = None
    body: str | None = None
    body_bytes: Annotated[int, Meta(ge=0, le=10_000_000)] = 0
    duplicate: bool = False
    lost: bool = False
    late: bool = False

    @property
    def answers(self) -> bool:
        """Whether it is this that is answered, whatever the simulator would have said."""
        return self.status != 200 or self.errcode is not None or self.body is not None or self.body_bytes > 0

    @property
    def raw(self) -> bytes | None:
        """The body to send as it is."""
        if self.body is not None:
            return self.body.encode()
        return b" " * self.body_bytes if self.body_bytes else None


class Faults:
    """The faults that wait, first come first met."""

    def __init__(self, faults_max: int) -> None:
        self._max = faults_max
        self._waiting: dict[Api, deque[Fault]] = {"wechat": deque(), "sms": deque()}

    def inject(self, api: Api, fault: Fault) -> None:
        """Let the next requests of ``api`` meet ``fault``.

        Raises:
            ValueError: ``faults_max`` are waiting.
        """
        waiting = self._waiting[api]
        if len(waiting) >= self._max:
            raise ValueError(f"{self._max} faults wait for {api} already; clear them or raise faults_max")
        waiting.append(fault)

    def clear(self) -> None:
        """Nothing more goes wrong."""
        for waiting in self._waiting.values():
            waiting.clear()

    def take(self, api: Api) -> Fault | None:
        """The fault that this request meets."""
        waiting = self._waiting[api]
        if not waiting:
            return None
        fault = waiting.popleft()
        if fault.times > 1:
            waiting.appendleft(msgspec.structs.replace(fault, times=fault.times - 1))
        return fault
