"""What can go wrong between us and Redis. The driver's own exception is always the ``__cause__``."""

from __future__ import annotations

from daydo_kernel import DaydoError


class RedisError(DaydoError):
    """Anything :class:`daydo_redis.Redis` raises about Redis."""


class RedisUnavailable(
    RedisError,
    code=50328,
    name="redis.unavailable",
    zh="缓存服务暂时不可用，请稍后重试。",
    en="The cache is unavailable; please retry shortly.",
    retryable=True,
):
    """No connection, a lost one, a server that is loading or demoted, an open breaker, or no free slot.

    With ``reason`` ``connection lost`` the command may have been carried out; with ``breaker open``,
    ``pool exhausted`` and ``failing over`` it was not.
    """

    reason: str


class RedisTimeout(
    RedisError,
    code=50428,
    name="redis.timeout",
    zh="缓存服务没有及时响应，请稍后重试。",
    en="The cache did not answer in time; please retry shortly.",
    retryable=True,
):
    """The answer did not come in time. The command may have been carried out, or may yet be."""

    timeout_s: float


class RedisFull(
    RedisError,
    code=50728,
    name="redis.full",
    zh="缓存服务存储空间不足，请稍后重试。",
    en="The cache has no room left; please retry later.",
    retryable=True,
):
    """Redis takes no writes: it is at its ``maxmemory`` (``reason`` OOM) or cannot save to its disk (MISCONF).

    The command was not carried out. It works again as soon as there is room.
    """

    reason: str


class RedisCommandFailed(
    RedisError,
    code=50028,
    name="redis.command_failed",
    zh="Redis 拒绝了 {command}：{reason}",
    en="Redis refused {command}: {reason}",
):
    """Redis answered with an error (wrong type, a failing script): the call is at fault."""

    command: str
    reason: str
