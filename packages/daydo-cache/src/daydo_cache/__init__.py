"""A cache with one load per miss and a bound on staleness; see README.md."""

from .cache import Cache
from .cached import Cached
from .config import CacheConfig, Policy
from .errors import BadKey, CacheError, LoadFailed, LoadTimeout, LockBusy, LockLost
from .existing import Existing, FilterConfig
from .lock import HeldLock
from .space import Space

__all__ = [
    "BadKey",
    "Cache",
    "CacheConfig",
    "CacheError",
    "Cached",
    "Existing",
    "FilterConfig",
    "HeldLock",
    "LoadFailed",
    "LoadTimeout",
    "LockBusy",
    "LockLost",
    "Policy",
    "Space",
]
