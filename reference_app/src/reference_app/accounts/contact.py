"""What a user logs in by."""

from __future__ import annotations

import msgspec


class Contact(msgspec.Struct, frozen=True, kw_only=True):
    """A phone number (eleven digits) or an e-mail address (lower case): what a user logs in by."""

    phone: str | None = None
    email: str | None = None

    @classmethod
    def of(cls, phone: str | None, email: str | None) -> Contact:
        """Canonical form of what was typed: ``+86`` and capitals do not make another user."""
        if phone is not None:
            return cls(phone=phone[-11:])
        return cls(email=(email or "").lower())

    @property
    def login(self) -> str:
        return self.phone or self.email or ""
