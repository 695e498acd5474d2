"""What goes into auth and what comes out of it."""

from __future__ import annotations

import msgspec

from .errors import Forbidden


class Password(msgspec.Struct, frozen=True):
    """What a person types: ``login`` is a phone number, an address, a name; ``secret`` never shows in a repr."""

    login: str
    secret: str

    def __repr__(self) -> str:
        return "Password(***)"


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


class Principal(msgspec.Struct, frozen=True):
    """Who is calling, by which session, and what they may do."""

    tenant: str
    subject: str
    session_id: str
    permissions: frozenset[str] = frozenset()

    def may(self, permission: str) -> bool:
        """Whether ``permission`` is among theirs."""
        return permission in self.permissions

    def require(self, permission: str) -> None:
        """Pass, or :class:`Forbidden`."""
        if permission not in self.permissions:
            raise Forbidden(permission=permission)
