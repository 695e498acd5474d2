"""The Litestar edge: who is calling, declared where it matters. Extra: ``[litestar]``.

Every route says who may call it, on itself, its router or the application: ``guards=[authenticated]``,
``guards=[permitted("image:create")]``, ``guards=[ticketed]`` for WebSocket and SSE, or ``guards=[anyone]``. The plugin
finds guarded routes and documents them; :func:`route_postures` lists all, for a page and for the test that none was
forgotten. Errors become answers through ``daydo_kernel.litestar.KernelPlugin``.

A caller brings one Authorization header (an access token, an API key, a signature) or, from a web page of
:func:`web_sessions_router`, a cookie; changes by cookie bring a CSRF token as well. ``guards=[person]`` lets no key in,
``guards=[fresh(300)]`` only who has proven themselves lately.

Import from here. To change something: ``guards`` decides who may come in; ``session_routes``, ``web_routes``,
``key_routes`` and ``proof_routes`` are what can be mounted, with what goes in and out; ``postures`` reads what routes
ask of their callers; ``plugins`` runs Auth and writes the document.
"""

from .guards import Caller, Connection, anyone, authenticated, fresh, permitted, person, ticketed, until_refused
from .key_routes import KeyIn, KeyOut, KeyRevoked, NewKeyOut, keys_router
from .plugins import COOKIE_SCHEME, SCHEME, SIGNATURE_SCHEME, AuthPlugin, ShieldPlugin
from .postures import Access, RoutePosture, route_postures
from .proof_routes import AccessOut, StepUpIn, TicketOut, live_ticket_handler, step_up_handler
from .session_routes import LoggedOut, RefreshIn, SessionOut, SessionsEnded, TokensOut, auth_router
from .web_routes import WebLoginIn, WebSession, web_sessions_router

__all__ = [
    "COOKIE_SCHEME",
    "SCHEME",
    "SIGNATURE_SCHEME",
    "Access",
    "AccessOut",
    "AuthPlugin",
    "Caller",
    "Connection",
    "KeyIn",
    "KeyOut",
    "KeyRevoked",
    "LoggedOut",
    "NewKeyOut",
    "RefreshIn",
    "RoutePosture",
    "SessionOut",
    "SessionsEnded",
    "ShieldPlugin",
    "StepUpIn",
    "TicketOut",
    "TokensOut",
    "WebLoginIn",
    "WebSession",
    "anyone",
    "auth_router",
    "authenticated",
    "fresh",
    "keys_router",
    "live_ticket_handler",
    "permitted",
    "person",
    "route_postures",
    "step_up_handler",
    "ticketed",
    "until_refused",
    "web_sessions_router",
]
