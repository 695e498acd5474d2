"""Who may ask how often, who is refused first when it gets too much, and what can be turned off.

Routes say what holds for them by ``opt=LOGIN`` and the like; those that say nothing have :data:`DEFAULT`. Somebody with
a good token is limited as a user and spends nothing of the address, which at a mobile carrier is the address of
thousands. Health and metrics are answered by Observe, outside of all this: they are neither limited nor shed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import msgspec
from litestar import Router
from litestar.types import Guard
from msgspec import Meta

from daydo_auth import Auth, AuthError, Presented, Principal
from daydo_auth.cookies import ACCESS_COOKIE, cookie_of
from daydo_kernel import Config, EventSink, Part
from daydo_kernel.addresses import TrustedProxies, address_group
from daydo_pipeline import Provider, ProviderCall
from daydo_redis import Redis
from daydo_traffic import (
    Breaker,
    BreakerConfig,
    Bursty,
    Limits,
    LimitsConfig,
    Priority,
    Rule,
    Shedder,
    ShedderConfig,
    Switch,
    Switches,
    SwitchesConfig,
    Window,
)
from daydo_traffic.litestar import (
    Connection,
    LimitsPlugin,
    RouteLimit,
    limited,
    limits_admin_router,
    switched,
    switches_admin_router,
)
from daydo_traffic.policy import blames_the_other
from daydo_traffic.rules import WINDOW_LIMIT_MAX

from .images.errors import WorkersBusy

RULES: dict[str, Rule] = {
    "anonymous": Bursty(limit=100, period_s=60),
    "user": Bursty(limit=600, period_s=60),
    "refresh": Bursty(limit=600, period_s=60),
    "login": Window(limit=5, period_s=60),
    "register": Window(limit=20, period_s=60),
    "sms_codes": Window(limit=3, period_s=60),
    "uploads": Window(limit=20, period_s=60),
    "tasks": Window(limit=20, period_s=60),
    "live": Bursty(limit=300, period_s=60),
}
FEATURE = "feature."
SWITCHES: dict[str, Switch] = dict.fromkeys(
    ("registration", "uploads", *(FEATURE + name for name in ("cutout", "erase", "expand"))), Switch()
)
REDUCED_UPLOAD_SHARE = 4  # while uploads are reduced, a photo may have this part of the bytes

_CALLER = "daydo_caller"
_KEY_OWNER = "daydo_key_owner"


# What holds


def _refuse_unknown(what: str, given: Mapping[str, object], known: Mapping[str, object]) -> None:
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"there is no {what} {', '.join(unknown)}; there are {', '.join(known)}")


class RulesConfig(LimitsConfig, frozen=True, kw_only=True):
    """The limits of the service: see daydo-traffic.

    Attributes:
        rules: JSON by name, over the ones shown here: those that are not named stay as they are.
    """

    rules: dict[str, Rule] = msgspec.field(default_factory=lambda: dict(RULES))

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "rules", {**RULES, **self.rules})
        super().__post_init__()
        _refuse_unknown("rule", self.rules, RULES)


class FeaturesConfig(SwitchesConfig, frozen=True, kw_only=True):
    """What can be turned off: see daydo-traffic.

    Attributes:
        switches: JSON by name, over the ones shown here: those that are not named stay as they are.
    """

    switches: dict[str, Switch] = msgspec.field(default_factory=lambda: dict(SWITCHES))

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "switches", {**SWITCHES, **self.switches})
        super().__post_init__()
        _refuse_unknown("switch", self.switches, SWITCHES)


class DoorsConfig(ShedderConfig, frozen=True, kw_only=True):
    """When the service refuses: see daydo-traffic.

    What lasts is held to what is answered within a part of a second; a crowd that comes once is simply answered. More
    under way than keeps a processor busy would make everybody wait and nobody quicker.
    """

    lag_max_s: Annotated[float, Meta(gt=0, le=60)] = 0.1
    in_flight_begin: Annotated[int, Meta(ge=0, le=1_000_000)] = 16
    in_flight_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 48
    patience_s: Annotated[float, Meta(ge=0, le=60)] = 0.25
    burst_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 256


class TrafficConfig(Config, frozen=True, kw_only=True):
    """How the service bends.

    Attributes:
        limit_factor: every limit times this, but never beyond what its kind of rule allows; for load tests.
    """

    limit_factor: Annotated[float, Meta(ge=0.01, le=10_000)] = 1.0
    limits: RulesConfig = RulesConfig()
    shedder: DoorsConfig = DoorsConfig()
    features: FeaturesConfig = FeaturesConfig()
    provider: BreakerConfig = BreakerConfig()

    def scaled(self) -> LimitsConfig:
        """The limits, with the factor."""
        rules = {name: _scaled(rule, self.limit_factor) for name, rule in self.limits.rules.items()}
        return msgspec.structs.replace(self.limits, rules=rules)


def _scaled(rule: Rule, factor: float) -> Rule:
    limit = max(1, round(rule.limit * factor))
    if isinstance(rule, Window):
        limit = min(limit, WINDOW_LIMIT_MAX)
    return msgspec.structs.replace(rule, limit=limit)


# Who is asking


class Callers:
    """Who is asking, worked out once a request: for limits, the shedder and audit alike."""

    def __init__(self, auth: Auth, proxies: TrustedProxies) -> None:
        self._auth = auth
        self._proxies = proxies

    def address(self, connection: Connection) -> str:
        """The client's address, as far as the socket and proxies of ours vouch for it."""
        return self._proxies.client_address(connection.scope)

    def principal(self, connection: Connection) -> Principal | None:
        """Whom the token, or the page's cookie, names; without a good one nobody: the guard says why."""
        scope: Any = connection.scope
        if _CALLER not in scope:
            scope[_CALLER] = self._verified(scope["headers"])
        principal: Principal | None = scope[_CALLER]
        return principal

    def user(self, connection: Connection) -> str | None:
        """Whose allowance a request spends: the person's, also for a key of theirs; None for who shows nothing good."""
        if (principal := self.principal(connection)) is not None:
            return f"{principal.tenant}/{principal.subject}"
        scope: Any = connection.scope
        if _KEY_OWNER not in scope:
            scope[_KEY_OWNER] = self._auth.key_owner(Presented.of_scope(scope))
        owner: str | None = scope[_KEY_OWNER]
        return owner

    def _verified(self, headers: Sequence[tuple[bytes, bytes]]) -> Principal | None:
        values = [value for name, value in headers if name == b"authorization"]
        given = values[0].decode("latin-1") if len(values) == 1 else None
        try:
            if not values and (cookie := cookie_of(headers, ACCESS_COOKIE)) is not None:
                given = f"Bearer {cookie}"
            return self._auth.verify(given)
        except AuthError:
            return None


def callers_of(connection: Connection) -> Callers:
    """The application's."""
    callers: Callers = connection.app.state.callers
    return callers


def address(connection: Connection) -> str:
    """Limits by address: an IPv4 address, or the /64 of an IPv6 one."""
    return address_group(callers_of(connection).address(connection))


def user(connection: Connection) -> str | None:
    """Limits by user; nobody is concerned who is not logged in."""
    return callers_of(connection).user(connection)


def anonymous(connection: Connection) -> str | None:
    """Limits by address of those who are not logged in."""
    return address(connection) if callers_of(connection).user(connection) is None else None


def priority(connection: Connection) -> Priority:
    """Users are shed after those who are not logged in."""
    return Priority.NORMAL if callers_of(connection).user(connection) is None else Priority.HIGH


# What routes declare

DEFAULT = (RouteLimit("anonymous", by=anonymous), RouteLimit("user", by=user))
# Its caller is known only by the body, and thousands of them share a carrier's address.
REFRESH = limited(RouteLimit("refresh", by=address))
LOGIN = limited(RouteLimit("login", by=address), *DEFAULT)
REGISTER = limited(RouteLimit("register", by=address), *DEFAULT) | switched("registration")
SMS_CODES = limited(RouteLimit("sms_codes", by=address), *DEFAULT)
UPLOADS = limited(RouteLimit("uploads", by=user), *DEFAULT) | switched("uploads")
TASKS = limited(RouteLimit("tasks", by=user), *DEFAULT)
# A ticket in the query says who it is, but only once it is redeemed; and reconnecting is what clients do.
LIVE = limited(RouteLimit("live", by=address))


# What does it


class Traffic:
    """Limits, shedder and switches of the service, and what the composition needs of them."""

    def __init__(self, config: TrafficConfig, redis: Redis, events: EventSink) -> None:
        self.limits = Limits(redis, config.scaled(), events=events)
        self.shedder = Shedder(config.shedder)
        self.switches = Switches(redis, config.features, events=events)
        self.plugin = LimitsPlugin(
            self.limits, DEFAULT, shedder=self.shedder, priority=priority, switches=self.switches
        )
        self._config = config
        self._events = events

    @property
    def parts(self) -> dict[str, Part]:
        """What Observe shows; the plugin enters them."""
        return {"limits": self.limits, "shedder": self.shedder, "switches": self.switches}

    def admin_routers(self, *, guards: Sequence[Guard]) -> list[Router]:
        """``/limits`` and ``/switches``, for whom ``guards`` let in."""
        return [
            limits_admin_router(self.limits, _actor, guards=guards),
            switches_admin_router(self.switches, _actor, guards=guards),
        ]

    def guarded(self, provider: Provider, name: str, features: Iterable[str]) -> Provider:
        """``provider`` behind a breaker; while that is open, the switches of ``features`` are off.

        So nobody pays for, and waits for, a task that will fail.
        """
        breaker = Breaker(
            name, self._config.provider, is_failure=_is_broken, metrics=self.switches.metrics, events=self._events
        )
        for feature in features:
            self.switches.follow(FEATURE + feature, breaker)
        return _Guarded(provider, breaker)


class _Guarded:
    """A provider behind a breaker."""

    def __init__(self, provider: Provider, breaker: Breaker) -> None:
        self._provider = provider
        self._breaker = breaker

    async def run(self, call: ProviderCall) -> dict[str, Any]:
        return await self._breaker.call(self._provider.run, call)


def _is_broken(error: Exception) -> bool:
    return blames_the_other(error) and not isinstance(error, WorkersBusy)  # busy is not broken


def _actor(connection: Connection) -> str:
    principal: Principal = connection.user
    return principal.subject
