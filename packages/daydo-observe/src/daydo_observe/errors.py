"""What the health pages answer when something is wrong."""

from __future__ import annotations

from daydo_kernel import DaydoError


class ObserveError(DaydoError):
    """Everything daydo-observe may answer with."""


class Unhealthy(
    ObserveError,
    code=50349,
    name="observe.unhealthy",
    zh="部分组件不可用：{parts}",
    en="Not available: {parts}",
    retryable=True,
):
    """At least one part is down."""

    parts: str
