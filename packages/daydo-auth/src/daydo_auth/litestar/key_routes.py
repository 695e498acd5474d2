"""Routes for a person's own API keys."""

from __future__ import annotations

from typing import Annotated

import msgspec
from litestar import Router, delete, get, post
from litestar.params import Body, PathParameter
from msgspec import Meta

from daydo_auth.auth import Auth
from daydo_auth.errors import Forbidden, KeyRefused, KeyUnknown
from daydo_auth.key_rows import ApiKey, KeyKind
from daydo_auth.keys import MAX_NAME_CHARS, MAX_SCOPES
from daydo_auth.permissions import Grant
from daydo_kernel import Envelope, Page, isoformat, ok
from daydo_kernel.litestar import refusals

from .guards import Caller, fresh, person

KeyId = Annotated[str, PathParameter(pattern=r"^[!-~]{1,48}$")]


class KeyIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key to be made. ``expires_in_s`` absent: it does not expire."""

    name: Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]
    scopes: Annotated[list[Grant], Meta(min_length=1, max_length=MAX_SCOPES)]
    kind: KeyKind = "bearer"
    expires_in_s: Annotated[int, Meta(ge=60, le=315_360_000)] | None = None


class KeyOut(msgspec.Struct, frozen=True, omit_defaults=True):
    """A key of mine; times that are absent are never. ``works``: neither revoked nor expired."""

    id: str
    kind: KeyKind
    name: str
    scopes: tuple[str, ...]
    works: bool
    created_at: str
    expires_at: str | msgspec.UnsetType = msgspec.UNSET
    revoked_at: str | msgspec.UnsetType = msgspec.UNSET
    used_at: str | msgspec.UnsetType = msgspec.UNSET

    @classmethod
    def of(cls, key: ApiKey, now_us: int) -> KeyOut:
        times = (key.expires_at_us, key.revoked_at_us, key.used_at_us)
        shown = [isoformat(each) if each else msgspec.UNSET for each in times]
        works = key.works_at(now_us)
        return cls(key.id, key.kind, key.name, key.scopes, works, isoformat(key.created_at_us), *shown)


class NewKeyOut(msgspec.Struct, frozen=True):
    """A key that was just made. ``secret`` is shown this once; see :class:`daydo_auth.NewKey` for what it is."""

    key: KeyOut
    secret: str

    def __repr__(self) -> str:
        return f"NewKeyOut(id={self.key.id!r}, ***)"


class KeyRevoked(msgspec.Struct, frozen=True):
    """The key that works no more."""

    key_id: str


def keys_router(auth: Auth, path: str = "/api-keys", *, fresh_s: float = 900.0) -> Router:
    """``GET``, ``POST``, ``DELETE /{id}`` below ``path``: a person's own API keys.

    Who makes one has proven themselves within ``fresh_s``; see :func:`step_up_handler`.
    """

    @get(guards=[person], summary="My API keys", operation_id="ApiKeys")
    async def keys(request: Caller) -> Envelope[Page[KeyOut]]:
        """The newest first: all that work, and the last that were revoked or expired."""
        found = await auth.keys.list(request.user)
        return ok(Page(items=[KeyOut.of(key, auth.now_us()) for key in found]))

    @post(
        guards=[fresh(fresh_s)],
        summary="Make an API key",
        operation_id="MakeApiKey",
        responses=refusals(Forbidden, KeyRefused),
    )
    async def make(request: Caller, data: Annotated[KeyIn, Body()]) -> Envelope[NewKeyOut]:
        """Its secret is in this answer and nowhere else. It may do what its scopes and my roles both allow."""
        now_us = auth.now_us()
        new = await auth.keys.create(
            request.user.subject,
            tenant=request.user.tenant,
            name=data.name,
            scopes=data.scopes,
            kind=data.kind,
            expires_at_us=now_us + data.expires_in_s * 1_000_000 if data.expires_in_s else 0,
            by=request.user,
        )
        return ok(NewKeyOut(KeyOut.of(new.key, now_us), new.secret))

    @delete(
        "/{key_id:str}",
        status_code=200,
        guards=[person],
        summary="Revoke an API key",
        operation_id="RevokeApiKey",
        responses=refusals(KeyUnknown),
    )
    async def revoke(request: Caller, key_id: KeyId) -> Envelope[KeyRevoked]:
        """It works no more, at once here and within a second or so everywhere."""
        await auth.keys.revoke(request.user, key_id)
        return ok(KeyRevoked(key_id))

    return Router(path, route_handlers=[keys, make, revoke], tags=["auth"])
