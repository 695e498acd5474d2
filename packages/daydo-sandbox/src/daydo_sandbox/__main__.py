"""``python -m daydo_sandbox [--port N]``: a sandbox on loopback until Ctrl-C; its first line says how to reach it."""

from __future__ import annotations

import argparse
import contextlib
import threading

import msgspec

from .sandbox import LABEL, Sandbox
from .serving import serving


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m daydo_sandbox", description=LABEL)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    options = parser.parse_args()
    sandbox = Sandbox()
    with serving(sandbox, port=options.port) as url, contextlib.suppress(KeyboardInterrupt):
        how = {
            "label": LABEL,
            "url": url,
            "wechat_appid": sandbox.wechat.appid,
            "wechat_secret": sandbox.wechat.secret,
            "sms_token": sandbox.sms.token,
        }
        print(msgspec.json.encode(how).decode(), flush=True)  # noqa: T201
        threading.Event().wait()


if __name__ == "__main__":
    main()
