"""What an application is given as ``plugins=``: they run Auth with it, and document what its routes ask and refuse."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import replace
from typing import Final

from litestar import Litestar
from litestar.config.app import AppConfig
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Components, Reference, SecurityScheme
from litestar.plugins import InitPlugin, ReceiveRoutePlugin
from litestar.routes import BaseRoute, HTTPRoute

from daydo_auth.asgi import SAFE_METHODS
from daydo_auth.auth import Auth
from daydo_auth.cookies import ACCESS_COOKIE, CSRF_HEADER
from daydo_auth.errors import (
    AccountDisabled,
    CsrfInvalid,
    Forbidden,
    HeaderRefused,
    JsonRefused,
    KeyInvalid,
    NoncesUnavailable,
    OriginRefused,
    PersonRequired,
    RequestTimedOut,
    RequestTooSlow,
    SessionRevoked,
    SignatureInvalid,
    StepUpRequired,
    TicketInvalid,
    TicketsUnavailable,
    TokenExpired,
    TokenInvalid,
    TokenMissing,
    TokenStale,
)
from daydo_kernel import DaydoError, PayloadTooLarge, UnsupportedMediaType
from daydo_kernel.litestar import refusals

from .guards import STATE
from .postures import access_of, fresh_s_of, permissions_of

SCHEME: Final = "bearer"
COOKIE_SCHEME: Final = "cookie"
SIGNATURE_SCHEME: Final = "signature"


class AuthPlugin(InitPlugin, ReceiveRoutePlugin):
    """Runs ``auth`` with the application, lets the guards find it, and documents guarded routes.

    Its database and Redis must run already: put them into ``lifespan=``.
    """

    def __init__(self, auth: Auth) -> None:
        self._auth = auth

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        app_config.lifespan = [*app_config.lifespan, self._lifespan]
        app_config.state[STATE] = self._auth
        if (openapi := app_config.openapi_config) is not None:
            known = openapi.components if isinstance(openapi.components, list) else [openapi.components]
            schemes: dict[str, SecurityScheme | Reference] = {
                SCHEME: SecurityScheme(
                    "http", scheme=SCHEME, bearer_format="JWT", description="an access token, or an API key `dk_…`"
                ),
                SIGNATURE_SCHEME: SecurityScheme(
                    "apiKey",
                    name="Authorization",
                    security_scheme_in="header",
                    description="`bce-auth-v1/…`, made with a signing key",
                ),
                COOKIE_SCHEME: SecurityScheme(
                    "apiKey",
                    name=ACCESS_COOKIE,
                    security_scheme_in="cookie",
                    description=f"web pages; changes also need the header {CSRF_HEADER}",
                ),
            }
            app_config.openapi_config = copy(openapi)  # Litestar's default is one object for every application
            app_config.openapi_config.components = [*known, Components(security_schemes=schemes)]
        return app_config

    def receive_route(self, route: BaseRoute) -> None:
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                _document_guards(handler)

    @asynccontextmanager
    async def _lifespan(self, app: Litestar) -> AsyncIterator[None]:
        async with self._auth:
            yield


class ShieldPlugin(ReceiveRoutePlugin):
    """Documents what a :class:`daydo_auth.asgi.Shield` around the application refuses."""

    def receive_route(self, route: BaseRoute) -> None:
        for handler in route.route_handlers if isinstance(route, HTTPRoute) else ():
            errors: list[type[DaydoError]] = [HeaderRefused, JsonRefused, RequestTimedOut]
            if handler.http_methods - SAFE_METHODS:
                errors += [OriginRefused, PayloadTooLarge, RequestTooSlow, UnsupportedMediaType]
            _document(handler, errors)


def _document_guards(handler: HTTPRouteHandler) -> None:
    guards = handler.resolve_guards()
    access = access_of(guards)
    if access in ("authenticated", "person"):
        errors: list[type[DaydoError]] = [TokenMissing, TokenInvalid, TokenExpired, SessionRevoked, TokenStale]
        errors += [KeyInvalid, SignatureInvalid, AccountDisabled, NoncesUnavailable]
        errors += [PersonRequired] if access == "person" else []
        errors += [StepUpRequired] if fresh_s_of(guards) else []
        errors += [Forbidden] if permissions_of(guards) else []
        errors += [CsrfInvalid] if handler.http_methods - SAFE_METHODS else []
        handler.security = [{scheme: []} for scheme in (SCHEME, COOKIE_SCHEME, SIGNATURE_SCHEME)]
        if access == "person":
            handler.security.pop()
        _document(handler, errors)
    elif access == "ticket":
        _document(handler, [TicketInvalid, SessionRevoked, KeyInvalid, TokenStale, TicketsUnavailable])


def _document(handler: HTTPRouteHandler, errors: list[type[DaydoError]]) -> None:
    """Add ``errors`` to what the route says of itself; of one status there is one entry, which names all."""
    known = dict(handler.responses or {})
    for status, spec in refusals(*errors).items():
        before = known.get(status)
        if before is None:
            known[status] = spec
        elif isinstance(before, ResponseSpec) and (spec.description or "") not in (before.description or ""):
            known[status] = replace(before, description=f"{before.description}; {spec.description}")
    handler.responses = known
