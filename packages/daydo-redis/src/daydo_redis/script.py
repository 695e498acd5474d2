"""Lua on the server, sent once and then named by its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from .call import Call
from .wire import Argument


class Script:
    """``await script(keys=[…], args=[…])``; made by :meth:`daydo_redis.Redis.script`.

    The first call sends the text, by EVAL, which the server keeps; the others name it by its hash. A server that has
    forgotten it (SCRIPT FLUSH, a restart, a failover) answers NOSCRIPT before doing anything, and is sent the text
    again; only then does a call arrive after those that were made behind it in the same turn.
    """

    def __init__(self, send: Callable[[Call], Awaitable[Any]], lua: str, *, idempotent: bool) -> None:
        self._send = send
        self._lua = lua
        self._idempotent = idempotent
        self.sha = hashlib.sha1(lua.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, *, keys: Sequence[str | bytes] = (), args: Sequence[Argument] = ()) -> Any:
        """Run the script; its answer comes as Redis sends it: int, bytes, None or a list of these.

        On a cluster all ``keys`` must share a slot, which one key always does.

        Redis gone: ``RedisUnavailable``, or ``RedisTimeout`` when it may have run. An error inside the script:
        ``RedisCommandFailed``; what it had written by then stays written.
        """
        key = keys[0] if keys else None
        words = ("EVALSHA", self.sha, len(keys), *keys, *args)
        return await self._send(Call(*words, key=key, lua=self._lua, repeatable=self._idempotent))
