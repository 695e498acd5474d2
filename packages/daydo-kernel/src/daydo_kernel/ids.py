"""Ids that sort by time: a prefix and 26 Crockford characters that hold the bits of a UUIDv7 (RFC 9562).

Within one process every id is greater than the one before it, also when the wall clock steps back; so an
index on them grows at its end and ``ORDER BY id`` is the order of creation. Store them in a column with a
binary collation.
"""

from __future__ import annotations

import secrets
import threading
import time

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_TAIL_BITS = 74
_PAIRS = [high + low for high in ALPHABET for low in ALPHABET]
_40_BITS = (1 << 40) - 1

_lock = threading.Lock()
_last_ms = 0
_last_tail = 0


def new_id(prefix: str) -> str:
    """``new_id("run")`` → ``run_01JD…`` (prefix, underscore, 26 characters)."""
    ms, tail = _next()
    # The UUID's lower 80 bits: version, 12 of the tail, variant, 62 of the tail.
    high, low = 0x7 << 36 | tail >> 62 << 24 | 0b10 << 22 | tail >> 40 & 0x3FFFFF, tail & _40_BITS
    return f"{prefix}_{_PAIRS[ms >> 40]}{_eight(ms & _40_BITS)}{_eight(high)}{_eight(low)}"


def _eight(bits: int) -> str:
    """40 bits as characters."""
    return f"{_PAIRS[bits >> 30]}{_PAIRS[bits >> 20 & 0x3FF]}{_PAIRS[bits >> 10 & 0x3FF]}{_PAIRS[bits & 0x3FF]}"


def _next() -> tuple[int, int]:
    global _last_ms, _last_tail
    with _lock:
        ms = time.time_ns() // 1_000_000
        if ms > _last_ms:
            # The top bit stays clear so that steps within this millisecond have room.
            _last_ms, _last_tail = ms, secrets.randbits(_TAIL_BITS - 1)
        else:
            # Random steps keep two forked processes, which share this state, from colliding.
            _last_tail += 1 + secrets.randbits(48)
            if _last_tail >> _TAIL_BITS:
                _last_ms, _last_tail = _last_ms + 1, secrets.randbits(_TAIL_BITS - 1)
        return _last_ms, _last_tail
