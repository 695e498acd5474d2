"""The noun: the outside world, played."""

from __future__ import annotations

from typing import Any, Final

from daydo_kernel import Clock, EventSink, Metrics, Part, SystemClock

from .config import SandboxConfig
from .control import Simulators, make_app
from .faults import Api, Fault, Faults
from .sms import SmsSimulator
from .wechat import WeChatSimulator

LABEL: Final = "protocol simulator; never touched the real provider"
_APIS: Final[tuple[Api, ...]] = ("wechat", "sms")
_HEADER = (b"x-sandbox", LABEL.encode())


class Sandbox(Part):
    """WeChat log-in and an SMS gateway as one ASGI application, with faults on demand::

        async with Sandbox() as sandbox:
            code = sandbox.wechat.issue_code("openid_of_zhang")
            sandbox.inject("wechat", Fault(errcode=-1))
            client = httpx.AsyncClient(transport=httpx.ASGITransport(sandbox), base_url="http://sandbox")

    Everything is kept in memory and goes with the object. Every answer is labelled by the header ``X-Sandbox``. Whoever
    reaches it may read every message: in process or on loopback, never on a network.

    ``clock`` is the simulators', for tests. ``events`` is taken as by every noun; the sandbox has none to tell.
    """

    def __init__(
        self,
        config: SandboxConfig = SandboxConfig(),  # noqa: B008 (frozen)
        *,
        clock: Clock | None = None,
        events: EventSink | None = None,
    ) -> None:
        super().__init__(drain_s=config.drain_s)
        host_clock: Clock = clock if clock is not None else SystemClock()
        self.metrics = Metrics("daydo_sandbox")
        requests = self.metrics.counter("requests_total", "Requests to a simulated provider.", ("api",))
        self._requests = {api: requests.cell(api) for api in _APIS}
        self.wechat = WeChatSimulator(config, host_clock)
        self.sms = SmsSimulator(config, host_clock)
        self._faults = Faults(config.faults_max)
        self._app: Any = None

    def inject(self, api: Api, fault: Fault) -> None:
        """Let the next requests of ``wechat`` or ``sms`` meet ``fault``.

        Raises:
            ValueError: ``faults_max`` are waiting already.
        """
        self._faults.inject(api, fault)

    def clear_faults(self) -> None:
        """Nothing more goes wrong."""
        self._faults.clear()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI. Raises NotStarted before entry."""
        self._require_started()

        async def send_labelled(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), _HEADER]
            await send(message)

        await self._app(scope, receive, send_labelled)

    async def _start(self) -> None:
        # Not in the constructor: a Litestar application looks for its optional plug-ins on the disk.
        self._app = make_app(LABEL, Simulators(self.wechat, self.sms, self._faults, self._requests))
