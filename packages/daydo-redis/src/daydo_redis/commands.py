"""What we know of Redis' commands: which need a connection of their own, which only read, where their key is."""

from __future__ import annotations

from collections.abc import Sequence

from .wire import Argument, text

# fmt: off
# What would leave its mark on a shared connection, or hold one for as long as it likes.
_OWN_CONNECTION = {
    "ASKING", "AUTH", "BLMOVE", "BLMPOP", "BLPOP", "BRPOP", "BRPOPLPUSH", "BZMPOP", "BZPOPMAX", "BZPOPMIN",
    "DISCARD", "EXEC", "HELLO", "MONITOR", "MULTI", "PSUBSCRIBE", "PSYNC", "PUNSUBSCRIBE", "QUIT", "READONLY",
    "READWRITE", "RESET", "SELECT", "SSUBSCRIBE", "SUBSCRIBE", "SUNSUBSCRIBE", "SYNC", "UNSUBSCRIBE", "UNWATCH",
    "WAIT", "WAITAOF", "WATCH",
}
_DEPENDS_ON_OPTION = {"CLIENT": {"REPLY", "TRACKING", "CACHING"}, "XREAD": {"BLOCK"}, "XREADGROUP": {"BLOCK"}}

# Asked twice they leave everything as asked once, and nobody can tell. (SET and DEL are not among them: between the
# two attempts somebody else may have written.)
_READS = {
    "BITCOUNT", "DBSIZE", "ECHO", "EXISTS", "GET", "GETBIT", "GETRANGE", "HEXISTS", "HGET", "HGETALL", "HLEN",
    "HMGET", "LLEN", "LRANGE", "MGET", "PING", "PTTL", "SCARD", "SISMEMBER", "SMEMBERS", "STRLEN", "TIME", "TTL",
    "TYPE", "XLEN", "XRANGE", "ZCARD", "ZCOUNT", "ZRANGE", "ZRANK", "ZSCORE",
}

_NO_KEY = {
    "ACL", "CLIENT", "CLUSTER", "COMMAND", "CONFIG", "DBSIZE", "ECHO", "FLUSHALL", "FLUSHDB", "FUNCTION", "INFO",
    "KEYS", "LASTSAVE", "LATENCY", "MODULE", "PING", "PUBLISH", "PUBSUB", "RANDOMKEY", "ROLE", "SCAN", "SCRIPT",
    "SLOWLOG", "TIME",
}
_KEY_IS_SECOND = {
    "BITOP", "DEBUG", "LMPOP", "MEMORY", "OBJECT", "SINTERCARD", "XGROUP", "XINFO", "ZDIFF", "ZINTER", "ZINTERCARD",
    "ZMPOP", "ZUNION",
}
_SCRIPTS = {"EVAL", "EVALSHA", "EVALSHA_RO", "EVAL_RO", "FCALL", "FCALL_RO"}
# fmt: on


def shareable(command: Sequence[Argument]) -> tuple[Argument, ...]:
    """The words of ``command``, its name in capitals; ``"CONFIG GET"`` in front counts as two.

    Raises:
        ValueError: there is none, or it needs a connection of its own.
    """
    if command and isinstance(command[0], str) and command[0] in _READS:
        return tuple(command)  # most are, and written in capitals
    words = text(command[0]).upper().split() if command else []
    if not words:
        raise ValueError("call takes a command and its arguments")
    name, *rest = words
    rest += [text(word).upper() for word in command[1:]] if name in _DEPENDS_ON_OPTION else []
    options = _DEPENDS_ON_OPTION.get(name, set()).intersection(rest)
    if options or name in _OWN_CONNECTION:
        raise ValueError(
            f"{' '.join([name, *options])} needs a connection of its own, calls share theirs: "
            "use subscribe, a script, or a redis.asyncio.Redis of yours"
        )
    return (*words, *command[1:])


def only_reads(words: Sequence[Argument]) -> bool:
    """Whether asking again for a lost answer does no harm."""
    return words[0] in _READS


def first_key(words: Sequence[Argument]) -> Argument | None:
    """The key that decides where in a cluster a command goes, or None if it has none.

    A guess where the key stands elsewhere; the server that is asked wrongly says whom to ask.
    """
    name = words[0]
    if name in _NO_KEY or len(words) < 2:
        return None
    if name in _SCRIPTS:
        return words[3] if len(words) > 3 and text(words[2]) != "0" else None
    if name in ("XREAD", "XREADGROUP"):
        upper = [text(word).upper() for word in words]
        at = upper.index("STREAMS") + 1 if "STREAMS" in upper else 1
    else:
        at = 2 if name in _KEY_IS_SECOND else 1
    return words[min(at, len(words) - 1)]
