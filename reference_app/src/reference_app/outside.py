"""The outside world, simulated, for the demo and for tests: daydo-sandbox and the settings that lead to it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from daydo_sandbox import Sandbox
from daydo_sandbox.serving import serving


@contextlib.contextmanager
def outside_world() -> Iterator[tuple[Sandbox, dict[str, str]]]:
    """A running sandbox, and the environment of a service that takes it for WeChat and its SMS gateway."""
    sandbox = Sandbox()
    with serving(sandbox) as url:
        yield (
            sandbox,
            {
                "DAYDO_SMS__URL": f"{url}/sms/messages",
                "DAYDO_SMS__TOKEN": sandbox.sms.token,
                "DAYDO_WECHAT__APPID": sandbox.wechat.appid,
                "DAYDO_WECHAT__SECRET": sandbox.wechat.secret,
                "DAYDO_WECHAT__BASE_URL": url,
            },
        )
