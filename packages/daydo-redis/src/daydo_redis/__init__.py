"""Redis with bounded failure; see README.md."""

from .client import Redis
from .config import RedisConfig
from .errors import RedisCommandFailed, RedisError, RedisFull, RedisTimeout, RedisUnavailable
from .pubsub import Message
from .script import Script

__all__ = [
    "Message",
    "Redis",
    "RedisCommandFailed",
    "RedisConfig",
    "RedisError",
    "RedisFull",
    "RedisTimeout",
    "RedisUnavailable",
    "Script",
]
