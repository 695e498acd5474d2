"""Which nonces have been used: one store for all workers, so that a signed request counts once among them.

A nonce is kept until no worker's clock takes its signature any more. Redis away: nobody can tell a request from its
copy, so none is let in. Keep these keys through memory pressure (``noeviction``): with a nonce dropped, or all of them
after a flush, a request that somebody has recorded is good once more until its signature ends, which is
``signature_window_s`` at most.
"""

from __future__ import annotations

from daydo_redis import Redis, RedisError

from .config import AuthConfig
from .errors import NoncesUnavailable, SignatureInvalid


class Nonces:
    def __init__(self, redis: Redis, config: AuthConfig) -> None:
        self._redis = redis
        self._prefix = config.redis_prefix + "nonce:"
        self._skew_s = config.clock_skew_s

    async def spend(self, key_id: str, nonce: str, good_for_s: int) -> None:
        """Use up ``nonce``: of several callers exactly one passes.

        Raises:
            SignatureInvalid: it has been used.
            NoncesUnavailable: Redis is away; whether it counts as used now is not known.
        """
        # Another host's clock may be behind ours by the skew.
        ttl_s = good_for_s + self._skew_s + 1
        try:
            is_new = await self._redis.set(f"{self._prefix}{key_id}:{nonce}", 1, ttl_s=ttl_s, only_new=True)
        except RedisError as error:
            raise NoncesUnavailable(retry_after_s=1) from error
        if not is_new:
            raise SignatureInvalid(reason="replayed")
