"""For tests of the running service: a client that behaves like a user, and small pictures drawn on the spot."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, Self

import httpx
from PIL import Image, ImageDraw
from websockets.sync.client import ClientConnection, connect

from daydo_sandbox import Sandbox

from .settings import is_setting

PASSWORD = "Correct-horse-7"  # noqa: S105 - of users that live for one test
# Settings of a service that is not tested for its limits, and is not to run into them, however busy the machine is.
GENEROUS = {
    "DAYDO_TRAFFIC__LIMIT_FACTOR": "1000",
    "DAYDO_TRAFFIC__SHEDDER__LAG_BEGIN_S": "5",
    "DAYDO_TRAFFIC__SHEDDER__LAG_MAX_S": "30",
    "DAYDO_TRAFFIC__SHEDDER__IN_FLIGHT_BEGIN": "500",
    "DAYDO_TRAFFIC__SHEDDER__IN_FLIGHT_MAX": "2000",
    "DAYDO_TRAFFIC__SHEDDER__BURST_MAX": "2000",
}
# Settings of a service in which many tests ask for codes one after the other.
TOWN = {
    "DAYDO_AUTH__BCRYPT_ROUNDS": "4",
    "DAYDO_AUTH__CODE_INTERVAL_S": "0",
    "DAYDO_AUTH__CODES_PER_ADDRESS": "10000",
    "DAYDO_AUTH__CODE_WRONG_PER_ADDRESS": "10000",
    "DAYDO_AUTH__SESSIONS_PER_SUBJECT_MAX": "10",
    "DAYDO_INVITES__POOL_SIZE": "20",
    "DAYDO_INVITES__INVITER_CREDITS": "30",
    "DAYDO_INVITES__INVITED_CREDITS": "20",
}
# One for all clients: each would read the system's authorities anew, which takes longer than most requests.
_TLS = ssl.create_default_context()
_numbers = itertools.count(1)


class Deployment(NamedTuple):
    """A running service: its address, its data folder, its log."""

    url: str
    folder: Path
    log: Path

    def files(self) -> set[Path]:
        """Every file that uploads and tasks have left."""
        return {path for path in (self.folder / "files").rglob("*") if path.is_file()}


class Town(NamedTuple):
    """A running service with the simulators of its outside world: phones and WeChat."""

    url: str
    folder: Path
    log: Path
    environment: dict[str, str]
    sandbox: Sandbox

    def code(self, client: Client, phone: str, purpose: str = "login") -> str:
        """The code that arrives on ``phone``."""
        client.ok("POST", "/auth/sms-codes", json={"phone": phone, "purpose": purpose})
        return str(re.findall(r"\d{6}", self.sandbox.sms.messages(phone[-11:])[0].text)[0])

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """``daydo …`` beside the service."""
        ours = {name: value for name, value in os.environ.items() if not is_setting(name)}
        command = [sys.executable, "-m", "reference_app.cli", *arguments]
        environment = {**ours, **self.environment}
        return subprocess.run(
            command, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=60, check=False
        )


class Client:
    """One user's connection; ``register`` makes the user."""

    def __init__(self, url: str, language: str = "en") -> None:
        self.url = url
        headers = {"Accept-Language": language}
        self.http = httpx.Client(base_url=f"{url}/api/v1", timeout=30.0, headers=headers, verify=_TLS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.http.close()

    def register(self, **given: Any) -> Self:
        """A new user, by e-mail; ``given`` goes along."""
        self.email = f"user{next(_numbers)}-{time.time_ns()}@example.com"
        return self.enter(self.ok("POST", "/auth/register", json={"email": self.email, "password": PASSWORD, **given}))

    def enter(self, session: dict[str, Any]) -> Self:
        """Go on as whom ``session`` is for."""
        self.session = session
        self.user_id = session["user"]["id"]
        self.http.headers["Authorization"] = f"Bearer {session['access_token']}"
        return self

    def call(self, method: str, path: str, **request: Any) -> httpx.Response:
        return self.http.request(method, path, **request)

    def ok(self, method: str, path: str, **request: Any) -> Any:
        answer = self.call(method, path, **request)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()["data"]

    def upload(self, content: bytes, name: str = "photo.jpg") -> str:
        return str(self.ok("POST", "/uploads", files={"file": (name, content)})["upload_id"])

    def start(self, feature: str, inputs: dict[str, str], key: str | None = None, **body: Any) -> httpx.Response:
        headers = {"Idempotency-Key": key} if key else {}
        return self.call("POST", "/tasks", json={"feature": feature, "inputs": inputs, **body}, headers=headers)

    def wait(self, task_id: str, timeout_s: float = 30.0) -> dict[str, Any]:
        """The task once it is finished."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            task: dict[str, Any] = self.ok("GET", f"/tasks/{task_id}")
            if task["status"] in ("succeeded", "failed", "cancelled"):
                return task
            time.sleep(0.05)
        raise AssertionError(f"task {task_id} is still {task['status']} after {timeout_s} s")

    def credits(self) -> dict[str, Any]:
        accounts = self.ok("GET", "/quota/accounts")["items"]
        return next(account for account in accounts if account["unit"] == "credits")

    def ticket(self) -> str:
        return str(self.ok("POST", "/live-tickets")["ticket"])

    def websocket(self, **query: str) -> ClientConnection:
        url = httpx.URL(self.url).copy_with(scheme="ws", path="/api/v1/tasks/events", params=query)
        return connect(str(url), proxy=None)

    def server_events(self, last: str, **query: str) -> list[dict[str, Any]]:
        """Events from the SSE stream up to and including the first named ``last``."""
        seen = []
        with self.http.stream("GET", "/tasks/events", params=query) as stream:
            assert stream.status_code == 200, stream.read()
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    seen.append(json.loads(line.removeprefix("data: ")))
                    if seen[-1]["type"] == last:
                        break
        return seen


def photo(kind: str = "JPEG", size: tuple[int, int] = (240, 320)) -> bytes:
    """A bright disc on a dim, slightly varied ground: something a cut-out finds."""
    width, height = size
    picture = Image.linear_gradient("L").resize(size).point(lambda value: 40 + value // 8).convert("RGB")
    radius = min(size) // 3
    centre = (width // 2, height // 2)
    ImageDraw.Draw(picture).ellipse(
        (centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius), fill=(240, 200, 60)
    )
    return encoded(picture, kind)


def mask(size: tuple[int, int] = (240, 320)) -> bytes:
    """White where the middle of the photo shall be erased."""
    picture = Image.new("L", size, 0)
    ImageDraw.Draw(picture).rectangle((size[0] // 3, size[1] // 3, size[0] // 2, size[1] // 2), fill=255)
    return encoded(picture, "PNG")


def encoded(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()
