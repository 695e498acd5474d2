"""Lua on the server, sent once and then named by its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import Argument, Redis


class Script:
    """``await script(keys=[…], args=[…])``; made by :meth:`daydo_redis.Redis.script`.

    Runs by EVALSHA. A server that does not know the script (first use, SCRIPT FLUSH, a restart, a failover)
    answers NOSCRIPT before doing anything; the call then sends the text by EVAL, which also stores it.
    """

    def __init__(self, redis: Redis, lua: str) -> None:
        self._redis = redis
        self._lua = lua
        self.sha = hashlib.sha1(lua.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, *, keys: Sequence[str | bytes] = (), args: Sequence[Argument] = ()) -> Any:
        """Run the script; its answer comes as Redis sends it: int, bytes, None or a list of these.

        Redis gone: ``RedisUnavailable``, or ``RedisTimeout`` when it may have run. An error inside the script:
        ``RedisCommandFailed``; what it had written by then stays written.
        """
        rest = (len(keys), *keys, *args)
        return await self._redis._send("EVALSHA", self.sha, *rest, if_unknown_script=("EVAL", self._lua, *rest))
