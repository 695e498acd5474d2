"""Features that can be turned down or off while the service runs, with an answer that says so."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from daydo_kernel import Clock, Config, Event, EventSink, Health, Metrics, NoEvents, Part
from daydo_redis import Redis, RedisError

from .breaker import Breaker, State
from .changes import Changes
from .errors import FeatureOff, SwitchUnknown
from .guard import Guard

Mode = Literal["on", "reduced", "off"]
MODES: tuple[Mode, ...] = ("on", "reduced", "off")  # from good to bad
NAME = re.compile(r"[a-z][a-z0-9_.-]{0,63}")


class Switch(Config, frozen=True, kw_only=True):
    """Where a feature stands.

    Attributes:
        mode: ``on``; ``reduced``: served, but with less (what, the feature itself knows); ``off``: refused.
        answer_zh, answer_en: what clients read when it is off; "": a general sentence.
        retry_after_s: when they are told to come again.
    """

    mode: Mode = "on"
    answer_zh: Annotated[str, Meta(max_length=500)] = ""
    answer_en: Annotated[str, Meta(max_length=500)] = ""
    retry_after_s: Annotated[float, Meta(ge=0, le=86_400)] = 60.0


class SwitchesConfig(Config, frozen=True, kw_only=True):
    """The switches.

    Attributes:
        switches: by name; what is changed at run time lies over them.
        refresh_s: how long a change takes to reach all processes.
        key_prefix: of the key in Redis.
        drain_s: the bound on leaving.
    """

    switches: dict[str, Switch] = {}  # noqa: RUF012 - msgspec copies it for every struct
    refresh_s: Annotated[float, Meta(ge=0.01, le=60)] = 1.0
    key_prefix: Annotated[str, Meta(min_length=1, max_length=64)] = "{daydo_switches}"
    drain_s: Annotated[float, Meta(ge=0, le=60)] = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.switches:
            if not NAME.fullmatch(name):
                raise ValueError(f"SwitchesConfig.switches: {name!r} is no name; use a-z, 0-9, _ . -")


class Switches(Part):
    """``switches.require("tryon")`` goes on, says ``"reduced"``, or raises :class:`FeatureOff`. No I/O.

    A switch is set by configuration, at run time for all processes (:meth:`change`), and by what it follows
    (:meth:`follow`); the worst of them holds. Redis away: what was read last holds. ``redis`` None: this process alone.
    ``clock`` is taken as by every noun. ``events``: ``traffic.switch_changed``, ``traffic.switch_restored``.
    """

    def __init__(
        self,
        redis: Redis | None,
        config: SwitchesConfig = SwitchesConfig(),  # noqa: B008 (frozen)
        *,
        clock: Clock | None = None,
        events: EventSink | None = None,
    ) -> None:
        super().__init__(drain_s=config.drain_s)
        self.config = config
        self._redis = redis
        self._events: EventSink = events if events is not None else NoEvents()
        self._changes: Changes[Switch] = Changes(redis, f"{config.key_prefix}:modes", Switch, config.switches)
        self._followed: dict[str, list[tuple[Callable[[], bool], Mode]]] = {name: [] for name in config.switches}
        self._stale = False
        self.metrics = Metrics("daydo_traffic")
        modes = self.metrics.gauge("switch_mode", "0 on, 1 reduced, 2 off.", ("switch",), merge="max")
        refused = self.metrics.counter("switch_refusals_total", "Requests for what is off.", ("switch",))
        self._refused = {name: refused.cell(name) for name in config.switches}
        for name in config.switches:
            modes.cell(name).follow(partial(self._mode_number, name))

    def follow(self, name: str, breaker: Breaker | Guard, mode: Mode = "off") -> None:
        """While ``breaker`` is open the feature is at best in ``mode``; half-open it is itself again."""
        self._require_switch(name)
        followed = breaker.breaker if isinstance(breaker, Guard) else breaker
        self._followed[name].append((lambda: followed.state is State.OPEN, mode))

    def mode(self, name: str) -> Mode:
        """What holds right now."""
        self._require_switch(name)
        modes = [mode for is_open, mode in self._followed[name] if is_open()]
        return max([self._changes.current[name].mode, *modes], key=MODES.index)

    def _mode_number(self, name: str) -> float:
        return float(MODES.index(self.mode(name)))

    def require(self, name: str) -> Mode:
        """``"on"`` or ``"reduced"``: then do less.

        Raises:
            FeatureOff: with the switch's own words.
        """
        self._require_started()
        mode = self.mode(name)
        if mode == "off":
            switch = self._changes.current[name]
            self._refused[name].inc()
            raise FeatureOff(
                feature=name,
                answer_zh=switch.answer_zh,
                answer_en=switch.answer_en,
                retry_after_s=switch.retry_after_s,
            )
        return mode

    @property
    def switches(self) -> dict[str, Switch]:
        """As set, by name; what they follow is not in here."""
        return dict(self._changes.current)

    async def change(self, name: str, switch: Switch, *, by: str = "", reason: str = "") -> None:
        """Set it in all processes: in this one at once, elsewhere within ``refresh_s``.

        Redis away: raises its error, and nothing has changed; except that after :class:`daydo_redis.RedisTimeout` it
        may have happened, and then holds everywhere within ``refresh_s``, without an event. Say it again: twice does
        no more than once. ``by`` is the subject of the event.

        Raises:
            SwitchUnknown: the configuration does not name it.
        """
        self._require_started()
        self._require_switch(name)
        await self._changes.put(name, switch)
        data = {"switch": name, "to": msgspec.to_builtins(switch), "reason": reason}
        await self._events.emit(Event(name="traffic.switch_changed", subject=by, data=data))

    async def restore(self, name: str, *, by: str = "", reason: str = "") -> None:
        """Back to the configuration, as :meth:`change`."""
        self._require_started()
        self._require_switch(name)
        await self._changes.remove(name)
        await self._events.emit(
            Event(name="traffic.switch_restored", subject=by, data={"switch": name, "reason": reason})
        )

    def _require_switch(self, name: str) -> None:
        if name not in self.config.switches:
            raise SwitchUnknown(switch=name)

    async def health(self) -> Health:
        """``degraded`` while what a switch follows holds it down, or changes cannot be read; ``detail`` names all
        that are not on.
        """
        if not self._running:
            return Health(status="down")
        modes = {name: self.mode(name) for name in self.config.switches}
        forced = any(MODES.index(mode) > MODES.index(self._changes.current[name].mode) for name, mode in modes.items())
        detail: dict[str, str | int | float] = {name: mode for name, mode in modes.items() if mode != "on"}
        return Health(status="degraded" if forced or self._stale else "ok", detail=detail)

    async def _start(self) -> None:
        if self._redis is not None:
            await self._refresh()
            self._repeat(self.config.refresh_s, self._refresh, "refresh")

    async def _refresh(self) -> None:
        if self._redis is None:
            return
        written = self._changes.written
        try:
            fields = await self._redis.call("HGETALL", self._changes.key)
        except RedisError:
            self._stale = True
            return
        self._stale = False
        # A client of the caller's that speaks RESP3 answers with a dict.
        flat = [word for pair in fields.items() for word in pair] if isinstance(fields, dict) else fields
        self._changes.read(flat, written)
