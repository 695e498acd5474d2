"""What a step is called with, and what a run needs from outside: providers and a quota."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from daydo_db import Tx

from .values import JSON, Account, Owner


class StepCall(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a step. It may come again with the same ``key``, when a worker died after the first.

    Attributes:
        key: idempotency key ``run/step/provider/attempt``: the same for every call of one attempt, new after a
            known failure. Hand it to whoever charges for the call; store files under it.
        report: tells watchers how far the step is, 0 to 1. Cheap and never waits; writes are throttled to one
            per ``progress_s``. Call it in the event loop's thread.
    """

    run_id: str
    flow: str
    version: int
    step: str
    attempt: int
    key: str
    owner: Owner
    report: Callable[[float], None]


class ProviderCall(StepCall, frozen=True, kw_only=True):
    """A call of a provider: the step's inputs and params, references resolved."""

    inputs: dict[str, JSON]
    params: dict[str, JSON]


class Provider(Protocol):
    """Somebody who does a step's work: a vendor, a local model.

    ``run`` returns a JSON object; files travel as storage keys. It raises a ``DaydoError`` for what a client
    may read, with ``retryable`` set where another attempt makes sense. On ``CancelledError`` it stops the
    work outside, if it can, and lets the error pass.
    """

    async def run(self, call: ProviderCall) -> dict[str, JSON]: ...


class Quota(Protocol):
    """Who holds and charges credits, in the shape of ``daydo_quota.Ledger``; all three are idempotent by ``key``.

    Each call joins the transaction it is given: it commits with the run's own change or not at all. A refusal is a
    ``DaydoError``, but no ``DbError``, and has written nothing; whatever else is raised is a fault.
    """

    async def reserve(
        self, account: Account, amount: int, *, key: str, ttl_s: float | None = None, tx: Tx, reason: str = ""
    ) -> Any: ...

    async def confirm(
        self, account: Account, amount: int | None = None, *, key: str, tx: Tx, reason: str = ""
    ) -> Any: ...

    async def cancel(self, account: Account, *, key: str, tx: Tx, reason: str = "") -> Any: ...
