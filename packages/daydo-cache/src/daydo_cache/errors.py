"""Every way a cache says no. What Redis says about itself stays :class:`daydo_redis.RedisError`."""

from __future__ import annotations

from daydo_kernel import DaydoError


class CacheError(DaydoError):
    """Root of this package's errors."""


class BadKey(
    CacheError,
    code=42240,
    name="cache.bad_key",
    zh="{field} 必须是 1 到 {most} 字节的文本或整数。",
    en="{field} must be text of 1 to {most} bytes, or a whole number.",
):
    """A key, tag or name cannot be part of a Redis key: empty, too long, not text, or half a surrogate."""

    field: str
    most: int


class LockBusy(
    CacheError,
    code=40940,
    name="cache.lock_busy",
    zh="操作正在由其他任务执行，请稍后重试。",
    en="Somebody else holds the lock; try again later, or pass wait_s to wait for it.",
    retryable=True,
):
    """The lock ``lock`` was not free within ``wait_s``."""

    lock: str
    wait_s: float


class LockLost(
    CacheError,
    code=50340,
    name="cache.lock_lost",
    zh="锁已失效，操作已中止，请重试。",
    en="The lock could not be kept, and its block was stopped; another holder may be at work already.",
    retryable=True,
):
    """The lock ``lock`` ran out inside its block: Redis was away for its ``ttl_s``, forgot it, or we stood still."""

    lock: str


class LoadFailed(
    CacheError,
    code=50341,
    name="cache.load_failed",
    zh="数据暂时无法加载，请稍后重试。",
    en="The data could not be loaded just now; please retry shortly.",
    retryable=True,
):
    """The loader failed in another process (``reason``: its error's type) and is not asked again yet, or it stopped
    itself. In the process where it fails its own error is raised."""

    space: str
    reason: str


class LoadTimeout(
    CacheError,
    code=50440,
    name="cache.load_timeout",
    zh="数据加载超时，请稍后重试。",
    en="The data did not load in time; please retry shortly.",
    retryable=True,
):
    """No value within ``timeout_s``. The load goes on, and the next caller may find its value."""

    space: str
    timeout_s: float
