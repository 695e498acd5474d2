"""What goes in and out of the administrators' routes."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Grant = Annotated[str, Meta(min_length=1, max_length=48, description="`users:read`, `quota:*`, `*`")]
RoleName = Annotated[str, Meta(pattern=r"^[a-z0-9_.-]{1,48}(?!\n)$")]
Reason = Annotated[str, Meta(min_length=1, max_length=200, description="for the audit log")]


class AdminUserOut(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A user as administrators see one; phone and e-mail are masked here, too."""

    id: str
    phone: str | None = None
    email: str | None = None
    nickname: str | None = None
    roles: list[str]
    disabled: bool
    created_at: str


class AdminSessionOut(msgspec.Struct, kw_only=True):
    """Where a user is logged in."""

    id: str
    device: str
    created_at: str
    last_used_at: str


class ReasonIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Why."""

    reason: Reason


class RolesIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The roles a user shall have: these and no others."""

    roles: Annotated[list[RoleName], Meta(max_length=16)]
    reason: Reason


class RoleIn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a role allows, and whose permissions it has besides."""

    permissions: Annotated[list[Grant], Meta(max_length=200)]
    inherits: Annotated[list[RoleName], Meta(max_length=20)] = []


class RoleOut(msgspec.Struct, kw_only=True):
    """A role; ``built_in`` ones come with the service."""

    name: str
    permissions: list[str]
    inherits: list[str]
    built_in: bool


class EndedOut(msgspec.Struct, kw_only=True):
    """How many sessions were ended."""

    ended: int
