"""What the limits say about one request, and how HTTP says it."""

from __future__ import annotations

import math
from functools import lru_cache

import msgspec

from .rules import Concurrent, Daily, Rule

DAY_S = 86_400


class Check(msgspec.Struct, frozen=True, gc=False):
    """One question: may ``key`` (an IP, a user, a tenant) spend ``cost`` units of ``rule``?"""

    rule: str
    key: str
    cost: int = 1


class Standing(msgspec.Struct, frozen=True, gc=False):
    """Where one key stands with one rule, after the decision.

    ``remaining`` units could be spent at once; ``reset_s`` until there is one more (0: nothing is spent);
    ``retry_after_s`` until a refused cost fits (0: it fitted).
    """

    rule: str
    admitted: bool
    limit: int
    remaining: int
    reset_s: float
    retry_after_s: float


class Decision(msgspec.Struct, frozen=True):
    """The answer about all checks of a request: let in only if every rule agrees, and only then is anything spent.

    ``wait_s``: how long to wait before going on (:class:`Paced` with ``wait_max_s``). ``shared``: decided in Redis,
    for all processes; False while each process decides by its share.
    """

    admitted: bool
    standings: tuple[Standing, ...] = ()
    policies: tuple[Rule, ...] = ()
    retry_after_s: float = 0.0
    wait_s: float = 0.0
    shared: bool = True

    def headers(self) -> dict[str, str]:
        """``RateLimit-Policy`` and ``RateLimit`` (draft-ietf-httpapi-ratelimit-headers-11); of a refusal also
        ``Retry-After``. Names in lower case; whole seconds, rounded up. No partition keys: they are IPs and users.
        """
        if not self.standings:
            return {}
        pairs = zip(self.standings, self.policies, strict=True)
        headers = {
            "ratelimit-policy": ", ".join([_policy(standing.rule, rule) for standing, rule in pairs]),
            "ratelimit": ", ".join(map(_limit, self.standings)),
        }
        if not self.admitted:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_s)))
        return headers


@lru_cache(maxsize=1_024)
def _policy(name: str, rule: Rule) -> str:
    if isinstance(rule, Concurrent):
        return f'"{name}";q={rule.limit};qu="concurrent-requests"'
    window_s = DAY_S if isinstance(rule, Daily) else math.ceil(rule.period_s)
    return f'"{name}";q={rule.limit};w={window_s}'


def _limit(standing: Standing) -> str:
    item = f'"{standing.rule}";r={standing.remaining}'
    # A client that obeys t must not come before Retry-After has passed, nor be told less than Retry-After.
    return f"{item};t={math.ceil(standing.reset_s)}" if standing.reset_s > 0 else item
