"""A tour of the running service: register, log in, bind a phone, cut out with live progress, look at the ledger.

It talks to its own service over HTTP, as any client would, on a temporary data folder that is removed at the end;
only the picture stays. The phone is one of daydo-sandbox's, which plays the SMS gateway. Progress goes to standard
error; with ``--once`` the last line of standard output is a JSON summary.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import httpx
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from daydo_sandbox import Sandbox

from .outside import outside_world
from .server import ServiceProcess

# The astronaut Eileen Collins, photographed by NASA: public domain.
_SAMPLE = ("scikit-image", "skimage/data/astronaut.png")
_TASK_TIMEOUT_S = 60.0

console = Console(stderr=True, highlight=False)


class DemoFailed(Exception):
    """A step of the tour did not do what it should; the message says which."""


def run(*, once: bool, image: Path | None) -> int:
    """Take the tour; then exit (``once``) or keep serving until Ctrl-C. Returns the exit status."""
    photo = image or sample_photo()
    photo.stat()  # a wrong name should not cost the start of a service
    with (
        _service() as (url, sandbox),
        httpx.Client(base_url=f"{url}/api/v1", timeout=_TASK_TIMEOUT_S) as client,
    ):
        user = _enter(client, sandbox)
        summary = {**_tour(client, photo), **user, "url": url}
        if once:
            print(msgspec.json.encode(summary).decode(), flush=True)  # noqa: T201
            return 0
        console.print(f"\nService: {url}   API page: {url}/docs   Metrics: {url}/metrics   (Ctrl-C stops it)")
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
    return 0


def sample_photo() -> Path:
    """The sample picture, out of the wheel of scikit-image (which need not be importable).

    Raises:
        DemoFailed: it is not installed.
    """
    distribution, name = _SAMPLE
    try:
        found = next(file for file in files(distribution) or () if str(file) == name)
    except (PackageNotFoundError, StopIteration):
        raise DemoFailed("no sample photo here; pass --image FILE, or use `nox -s demo`") from None
    return Path(str(found.locate()))


def _enter(client: httpx.Client, sandbox: Sandbox) -> dict[str, Any]:
    """Become somebody: by password, then by a code to a phone of their own, with a fresh pair of tokens."""
    email, password = f"demo-{secrets.token_hex(4)}@example.com", f"Demo-{secrets.token_hex(8)}!"
    _say("Register", _call(client, "POST", "/auth/register", json={"email": email, "password": password})["user"]["id"])
    session = _call(client, "POST", "/auth/login", json={"email": email, "password": password})
    client.headers["Authorization"] = f"Bearer {session['access_token']}"
    _say("Log in", session["user"]["email"])
    phone = f"138{secrets.randbelow(10**8):08}"
    _call(client, "POST", "/auth/sms-codes", json={"phone": phone, "purpose": "bind"})
    code = re.findall(r"\d{6}", sandbox.sms.messages(phone)[0].text)[0]
    user = _call(client, "POST", "/users/me/phone", json={"phone": phone, "code": code})
    _say("Phone", f"{user['phone']}, by a code from the simulated SMS gateway")
    tokens = _call(client, "POST", "/auth/refresh", json={"refresh_token": session["refresh_token"]})
    client.headers["Authorization"] = f"Bearer {tokens['access_token']}"
    _say("Refresh", "the next pair of tokens; the session stays")
    invite = _call(client, "POST", "/users/me/invites")["code"]
    _say("Invite", f"{invite}, to give away")
    return {"user_id": user["id"], "phone": user["phone"], "invite_code": invite}


def _tour(client: httpx.Client, photo: Path) -> dict[str, Any]:
    feature = next(item for item in _call(client, "GET", "/features")["items"] if item["name"] == "cutout")
    _say("Feature", f"{feature['title']}: {feature['price']} credits")
    with photo.open("rb") as file:
        upload = _call(client, "POST", "/uploads", files={"file": file})
    _say("Upload", f"{photo.name}, {upload['width']} × {upload['height']}")
    before = _credits(client)
    body = {"feature": "cutout", "inputs": {"photo": upload["upload_id"]}}
    task = _call(client, "POST", "/tasks", json=body, headers={"Idempotency-Key": secrets.token_hex(8)})
    status = _follow(client, task["id"])
    if status != "succeeded":
        raise DemoFailed(f"the task ended as {status}: {_call(client, 'GET', '/tasks/' + task['id'])}")
    result = Path(tempfile.mkdtemp(prefix="daydo-demo-")) / "cutout.png"
    result.write_bytes(client.get(f"/tasks/{task['id']}/result").raise_for_status().content)
    _say("Result", str(result))
    after = _credits(client)
    entries = _call(client, "GET", "/quota/history")["items"]
    _show_ledger(entries)
    settled = before["available"] - after["available"] == feature["price"] and after["reserved"] == 0
    return {
        "task": status,
        "quota": "confirmed" if settled else "unsettled",
        "result": str(result),
        "task_id": task["id"],
        "credits_before": before["available"],
        "credits_after": after["available"],
        "credits_spent": after["spent"],
    }


def _follow(client: httpx.Client, task_id: str) -> str:
    """Show the task's live events until it ends; its last status."""
    ticket = _call(client, "POST", "/live-tickets")["ticket"]
    columns = (TextColumn("[bold]{task.description}"), BarColumn(), TextColumn("{task.fields[status]}"))
    with (
        Progress(*columns, TimeElapsedColumn(), console=console) as progress,
        client.stream("GET", "/tasks/events", params={"ticket": ticket, "cursor": "0"}) as stream,
    ):
        bar = progress.add_task("Cut out", total=1.0, status="queued")
        for line in stream.iter_lines():
            if not line.startswith("data: "):
                continue
            event = msgspec.json.decode(line.removeprefix("data: "))
            if event["task_id"] != task_id:
                continue
            status = event["status"]
            progress.update(bar, completed=event["progress"], status=status)
            if status in ("succeeded", "failed", "cancelled"):
                return str(status)
    raise DemoFailed("the event stream ended before the task did")


def _credits(client: httpx.Client) -> dict[str, Any]:
    accounts = _call(client, "GET", "/quota/accounts")["items"]
    found: dict[str, Any] = next(account for account in accounts if account["unit"] == "credits")
    return found


def _call(client: httpx.Client, method: str, path: str, **request: Any) -> Any:
    answer = client.request(method, path, **request)
    if answer.is_error:
        raise DemoFailed(f"{method} {path} answered {answer.status_code}: {answer.text}")
    return answer.json()["data"]


def _say(step: str, detail: str) -> None:
    console.print(f"[green]✓[/green] [bold]{step:<9}[/bold] {detail}")


def _show_ledger(entries: list[dict[str, Any]]) -> None:
    table = Table("entry", "amount", "available", "reserved", title="Ledger")
    for entry in reversed(entries):
        table.add_row(entry["kind"], *(str(entry[column]) for column in ("amount", "available", "reserved")))
    console.print(table)


@contextlib.contextmanager
def _service() -> Iterator[tuple[str, Sandbox]]:
    folder = Path(tempfile.mkdtemp(prefix="daydo-demo-data-"))
    try:
        with contextlib.ExitStack() as stack:
            with console.status("Starting the service"):
                sandbox, environment = stack.enter_context(outside_world())
                service = stack.enter_context(ServiceProcess(folder, environment))
            yield service.url, sandbox
    finally:
        shutil.rmtree(folder, ignore_errors=True)
