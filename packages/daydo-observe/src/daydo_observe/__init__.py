"""Request ids, JSON logs, RED metrics and health for any ASGI application; see README.md."""

from .errors import ObserveError, Unhealthy
from .health import HealthReport
from .logs import Lines, configure_logging
from .observe import Observe, ObserveConfig

__all__ = [
    "HealthReport",
    "Lines",
    "Observe",
    "ObserveConfig",
    "ObserveError",
    "Unhealthy",
    "configure_logging",
]
