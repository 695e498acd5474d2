"""What goes into auth and what comes out of it."""

from __future__ import annotations

from typing import Literal

import msgspec

from daydo_kernel import NotFound

from .errors import Forbidden, PersonRequired, StepUpRequired
from .permissions import Permissions


class Password(msgspec.Struct, frozen=True):
    """What a person types: ``login`` is a phone number, an address, a name; ``secret`` never shows in a repr."""

    login: str
    secret: str

    def __repr__(self) -> str:
        return "Password(***)"


class Code(msgspec.Struct, frozen=True):
    """A one-time code that ``auth.codes`` sent to ``login``, a phone number or an e-mail address."""

    login: str
    code: str

    def __repr__(self) -> str:
        return "Code(***)"


class WeChatCode(msgspec.Struct, frozen=True):
    """What ``wx.login`` gave to the mini-program."""

    code: str

    def __repr__(self) -> str:
        return "WeChatCode(***)"


Credential = Password | Code | WeChatCode
"""What somebody shows to prove who they are."""


class Proof(msgspec.Struct, frozen=True):
    """What a credential has shown: whose identity it is. ``subject`` is None where nobody here has it yet.

    Attributes:
        tenant, kind, login: the identity; ``kind`` is ``login`` or ``wechat:<appid>``.
        subject: whose it is.
        way: by what it was proven.
        union: WeChat's unionid, the same person in every application of one owner.
    """

    tenant: str
    kind: str
    login: str
    subject: str | None
    way: Literal["password", "code", "wechat"]
    union: str = ""

    def __repr__(self) -> str:
        return f"Proof(kind={self.kind!r}, subject={self.subject!r}, way={self.way!r}, ***)"

    def of(self, subject: str | None) -> Proof:
        """The same, of ``subject``."""
        return msgspec.structs.replace(self, subject=subject)


class HashedPassword(msgspec.Struct, frozen=True):
    """A password that has passed the policy and been hashed, ready for :meth:`daydo_auth.Auth.register`."""

    login: str
    hashed: str

    def __repr__(self) -> str:
        return "HashedPassword(***)"


class Tokens(msgspec.Struct, frozen=True):
    """What a client keeps: ``access`` for every call, good for ``expires_in_s``; ``refresh`` for the next pair."""

    access: str
    refresh: str
    expires_in_s: int
    session_id: str
    subject: str

    def __repr__(self) -> str:
        return f"Tokens(session_id={self.session_id!r}, subject={self.subject!r}, ***)"


class Standing(msgspec.Struct, frozen=True):
    """How a subject stands: the names of its roles, how often that has changed, and whether it may log in.

    ``has_left``: it may not, and by its own will.
    """

    roles: tuple[str, ...] = ()
    epoch: int = 0
    is_disabled: bool = False
    has_left: bool = False


class AccessToken(msgspec.Struct, frozen=True):
    """An access token by itself: the session's refresh token stays the one the client has."""

    access: str
    expires_in_s: int
    session_id: str

    def __repr__(self) -> str:
        return f"AccessToken(session_id={self.session_id!r}, ***)"


Way = Literal["bearer", "cookie", "key", "signature", "ticket"]
"""What a caller showed: an access token, a web page's cookie, an API key, a signed request, a single-use ticket."""


class Principal(msgspec.Struct, frozen=True):
    """Who is calling, how they came in, and what they may do.

    Attributes:
        tenant, subject: who; "" is the one tenant of an application without tenants.
        session_id: of which session; "" for a key.
        roles: the names of their roles.
        permissions: what those come to in this tenant now, narrowed by the key where ``way`` is one.
        way: what they showed.
        proved_at_us: when the person last proved themselves, µs UTC; 0 for a key.
        key_id: of which API key.
        epoch: the subject's, as of what they showed: what is kept for later is stale once the subject's is newer.
    """

    tenant: str
    subject: str
    session_id: str = ""
    roles: tuple[str, ...] = ()
    permissions: Permissions = Permissions()
    way: Way = "bearer"
    proved_at_us: int = 0
    key_id: str = ""
    epoch: int = 0

    def may(self, permission: str) -> bool:
        """Whether ``permission`` is among theirs."""
        return self.permissions.may(permission)

    def require(self, *permissions: str) -> None:
        """Pass with all of ``permissions``.

        Raises:
            Forbidden: it names the first that is missing.
        """
        for permission in permissions:
            if not self.permissions.may(permission):
                raise Forbidden(permission=permission)

    def require_person(self) -> None:
        """Pass where a person is at it, by themselves and not through a key: for sessions, keys and passwords.

        Raises:
            PersonRequired: a key, or a ticket that was made with one.
        """
        if self.key_id:
            raise PersonRequired()

    def require_fresh(self, within_s: float, now_us: int) -> None:
        """Pass where the person has proven themselves less than ``within_s`` ago: for what is sensitive.

        Raises:
            StepUpRequired: it is longer ago; see :meth:`daydo_auth.Auth.step_up`.
            PersonRequired: a key, which can never prove anybody.
        """
        self.require_person()
        if now_us - self.proved_at_us >= within_s * 1_000_000:
            raise StepUpRequired(within_s=within_s)

    def require_tenant(self, tenant: str) -> None:
        """Pass where what they ask for belongs to their own tenant.

        Raises:
            NotFound: it does not; that others' rows exist is not said.
        """
        if tenant != self.tenant:
            raise NotFound()
