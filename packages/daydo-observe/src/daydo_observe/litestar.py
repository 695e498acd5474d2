"""The Litestar edge. Extra: ``[litestar]``."""

from __future__ import annotations

from litestar.config.app import AppConfig
from litestar.plugins import InitPlugin

from .observe import Observe


class ObservePlugin(InitPlugin):
    """Enters ``observe`` last and leaves it first, and keeps Litestar's hands off ``logging``.

    Litestar replaces the root logger's handlers by its own, which redact nothing. The wrapper stays outside:
    ``app = observe.wrap(Litestar([…], plugins=[ObservePlugin(observe)]))``.
    """

    def __init__(self, observe: Observe) -> None:
        self._observe = observe

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        app_config.logging_config = None
        app_config.lifespan = [*app_config.lifespan, lambda _: self._observe]
        return app_config
