"""How logins end, by what was shown: the labels of ``daydo_auth_logins_total``, all of them known beforehand.

A login is counted once. It is ``ok`` when its session's transaction is committed, so a log-in in two steps (prove, then
``open_session(…, proof=proof)``) counts at the second, and at the first only if that refuses. What a person does who is
logged in already, a step-up or a new password, is no login.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

from daydo_db import DbError, Tx
from daydo_kernel import Metrics

from .errors import (
    AccountDisabled,
    AuthError,
    CodesLimited,
    CodesUnavailable,
    CodeWrong,
    HashingSaturated,
    RiskRefused,
    UnknownIdentity,
    WeChatCodeInvalid,
    WeChatUnavailable,
    WrongCredentials,
)
from .model import Code, Credential, Password, Proof

Method = Literal["password", "code", "wechat", "other"]

_OUTCOMES: Final[dict[Method, tuple[str, ...]]] = {
    "password": ("ok", "wrong", "disabled", "saturated", "unavailable"),
    "code": ("ok", "wrong", "disabled", "unknown", "limited", "unavailable"),
    "wechat": ("ok", "wrong", "disabled", "unknown", "risk", "unavailable"),
    "other": ("ok", "disabled", "unavailable"),
}
_OUTCOME_OF: Final[dict[type[Exception], str]] = {
    WrongCredentials: "wrong",
    CodeWrong: "wrong",
    WeChatCodeInvalid: "wrong",
    AccountDisabled: "disabled",
    UnknownIdentity: "unknown",
    HashingSaturated: "saturated",
    CodesLimited: "limited",
    RiskRefused: "risk",
    CodesUnavailable: "unavailable",
    WeChatUnavailable: "unavailable",
}


class LoginCounts:
    """The cells of one Auth."""

    def __init__(self, metrics: Metrics) -> None:
        counter = metrics.counter("logins_total", "Logins by what was shown and how they ended.", ("method", "outcome"))
        self._cells = {
            (method, outcome): counter.cell(method, outcome)
            for method, outcomes in _OUTCOMES.items()
            for outcome in outcomes
        }

    def value(self, method: Method, outcome: str) -> float:
        """How many so far."""
        return self._cells[method, outcome].value

    def opened(self, tx: Tx, method: Method) -> None:
        """A session is opened by ``tx``; with its commit the login has succeeded."""
        tx.after_commit(self._cells[method, "ok"].inc)

    @contextmanager
    def refusals(self, method: Method | None) -> Iterator[None]:
        """Count what refuses the login inside; None: it is none. Whatever says nothing about logins is not counted."""
        try:
            yield
        except (AuthError, DbError) as error:
            outcome = "unavailable" if isinstance(error, DbError) else _OUTCOME_OF.get(type(error), "")
            if method is not None and (cell := self._cells.get((method, outcome))) is not None:
                cell.inc()
            raise


def method_of(shown: Credential | Proof | None) -> Method:
    """By what somebody logs in; ``other`` where auth was shown nothing."""
    if shown is None:
        return "other"
    if isinstance(shown, Proof):
        return shown.way
    if isinstance(shown, Password):
        return "password"
    return "code" if isinstance(shown, Code) else "wechat"
