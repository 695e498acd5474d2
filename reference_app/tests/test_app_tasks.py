"""Photo tasks over HTTP: what they cost, what they give, and what bad input does (nothing)."""

from __future__ import annotations

import io
import json
import re

import httpx
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from reference_app.testing import encoded, mask, photo


def test_a_cut_out_costs_its_price_once_and_gives_a_transparent_picture(user):
    """The main job: a photo goes in, a cut-out comes out, the credits are settled."""
    price = next(item["price"] for item in user.ok("GET", "/features")["items"] if item["name"] == "cutout")
    answer = user.start("cutout", {"photo": user.upload(photo())})
    assert answer.status_code == 201
    task = user.wait(answer.json()["data"]["id"])
    assert (task["status"], task["progress"], task["steps"]) == (
        "succeeded",
        1.0,
        [{"name": "cutout", "status": "succeeded"}],
    )
    result = user.call("GET", f"/tasks/{task['id']}/result")
    assert result.headers["content-type"] == "image/png"
    picture = Image.open(io.BytesIO(result.content))
    assert (picture.mode, picture.size) == ("RGBA", (240, 320))
    alpha = picture.getchannel("A")
    assert (alpha.getpixel((120, 160)), alpha.getpixel((2, 2))) == (255, 0)
    balance = user.credits()
    assert (balance["available"], balance["reserved"], balance["spent"]) == (100 - price, 0, price)


def test_erase_and_expand_work_on_the_same_upload(user):
    """Erase takes a mask, expand takes fractions; both give a picture."""
    upload = user.upload(photo())
    erased = user.start("erase", {"photo": upload, "mask": user.upload(mask(), "mask.png")})
    expanded = user.start("expand", {"photo": upload}, params={"left": 0.25, "bottom": 0.5})
    for answer, size in ((erased, (240, 320)), (expanded, (300, 480))):
        task = user.wait(answer.json()["data"]["id"])
        assert task["status"] == "succeeded", task
        result = user.call("GET", f"/tasks/{task['id']}/result")
        assert Image.open(io.BytesIO(result.content)).size == size


def test_a_task_that_fails_gives_its_credits_back_and_says_why(user):
    """A uniform picture has no subject: the hold is cancelled, the error is one a person understands."""
    blank = encoded(Image.new("RGB", (300, 300), "white"), "PNG")
    task = user.wait(user.start("cutout", {"photo": user.upload(blank)}).json()["data"]["id"])
    assert task["status"] == "failed"
    assert task["error"]["error"] == "images.nothing_to_cut_out"
    balance = user.credits()
    assert (balance["available"], balance["reserved"], balance["spent"]) == (100, 0, 0)
    assert user.call("GET", f"/tasks/{task['id']}/result").json()["error"] == "images.result_not_ready"
    kinds = [entry["kind"] for entry in user.ok("GET", "/quota/history")["items"]]
    assert kinds == ["cancelled", "held", "granted"]


def test_the_same_idempotency_key_is_the_same_task(user):
    """A retry after a lost answer neither starts nor charges twice; other inputs under the key conflict."""
    upload, other = user.upload(photo()), user.upload(photo(size=(200, 200)))
    first = user.start("cutout", {"photo": upload}, key="once")
    again = user.start("cutout", {"photo": upload}, key="once")
    assert first.json()["data"]["id"] == again.json()["data"]["id"]
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    conflict = user.start("cutout", {"photo": other}, key="once")
    assert (conflict.status_code, conflict.json()["error"]) == (409, "pipeline.key_conflict")
    user.wait(first.json()["data"]["id"])
    assert user.credits()["spent"] == 5


def test_without_enough_credits_nothing_starts(user):
    """402, no task, no hold."""
    upload = user.upload(photo())
    started = [user.start("expand", {"photo": upload}, params={"left": 0.1}) for _ in range(11)]
    assert [answer.status_code for answer in started] == [201] * 10 + [402]
    assert started[-1].json()["error"] == "quota.insufficient"
    assert len(user.ok("GET", "/tasks")["items"]) == 10
    for answer in started[:10]:
        user.wait(answer.json()["data"]["id"])
    assert user.credits()["spent"] == 100


def test_tasks_are_listed_newest_first_in_pages(user):
    """A cursor continues where the page ended; the last page has none."""
    upload = user.upload(photo())
    ids = [user.start("cutout", {"photo": upload}).json()["data"]["id"] for _ in range(5)]
    seen, cursor, pages = [], None, 0
    while pages == 0 or cursor:
        page = user.ok("GET", "/tasks", params={"limit": 2} | ({"cursor": cursor} if cursor else {}))
        seen += [task["id"] for task in page["items"]]
        cursor, pages = page.get("next_cursor"), pages + 1
    assert seen == ids[::-1]
    assert pages == 3


def test_a_cancelled_task_ends_cancelled_and_costs_nothing(user):
    """Cancel races the work; whichever wins, the ledger agrees with the status."""
    upload = user.upload(photo(size=(1600, 1600)))
    tasks = [user.start("cutout", {"photo": upload}).json()["data"]["id"] for _ in range(4)]
    user.call("POST", f"/tasks/{tasks[-1]}/cancel")
    finished = [user.wait(task)["status"] for task in tasks]
    assert finished[:3] == ["succeeded"] * 3
    balance = user.credits()
    assert balance["reserved"] == 0
    assert balance["spent"] == 5 * finished.count("succeeded")


# Made when they are needed: every worker that collects this file would draw them.
BAD_UPLOADS = {
    "text named .png": (lambda: b"this is a diary, not a picture", 415, "images.unsupported"),
    "a truncated JPEG": (lambda: photo(size=(640, 480))[:4000], 422, "images.broken"),
    "20,000 × 20,000 pixels": (lambda: encoded(Image.new("1", (20_000, 20_000)), "PNG"), 413, "images.too_large"),
    "0 bytes": (lambda: b"", 400, "images.empty"),
    "11 MB": (lambda: b"\xff\xd8\xff" + b"\0" * (11 * 1024 * 1024), 413, "kernel.payload_too_large"),
}


@pytest.mark.parametrize("name", BAD_UPLOADS)
def test_a_bad_upload_is_refused_and_keeps_nothing(user, service, name):
    """A clear 4xx, no row, no file."""
    make, status, error = BAD_UPLOADS[name]
    before = service.files()
    answer = user.call("POST", "/uploads", files={"file": ("photo.png", make())})
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert answer.json()["message"]
    assert service.files() == before


UNDECODABLE = b'--B\r\nContent-Disposition: form-data; name="file"; filename=""\r\n\r\n\xff\r\n--B--\r\n'


@pytest.mark.parametrize(
    "request_",
    [
        {"files": {"picture": ("a.jpg", b"x")}},
        {"content": UNDECODABLE, "headers": {"Content-Type": "multipart/form-data; boundary=B"}},
        {"files": [("file", ("a.jpg", b"x")), ("file", ("b.jpg", b"y"))]},
        {"data": {"file": "not a file"}, "files": {"other": ("a", b"")}},
        {"content": b"", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        {"content": b"--x\r\ngarbage", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        {"content": b"\xff\xfe", "headers": {"Content-Type": "multipart/form-data"}},
        {"json": {"file": "a.jpg"}},
        {},
    ],
    ids=[
        "misnamed",
        "undecodable",
        "doubled",
        "text part",
        "empty body",
        "broken body",
        "no boundary",
        "json",
        "nothing",
    ],
)
def test_an_upload_without_exactly_one_file_part_is_a_400_a_person_understands(user, request_):
    """Missing, doubled or misnamed: never a 500, never an accepted half."""
    answer = user.call("POST", "/uploads", **request_)
    assert 400 <= answer.status_code < 500, answer.text
    body = answer.json()
    assert body["errors"] or body["message"]
    assert not re.search(r"UploadFile|Empty|dict|object at", answer.text)


def test_another_users_photo_and_tasks_look_as_if_they_did_not_exist(stranger, user):
    """Ids are not secrets; what is behind them is."""
    upload = user.upload(photo())
    refused = stranger.start("cutout", {"photo": upload})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (400, "inputs.photo")
    assert stranger.credits()["available"] == 100
    task = user.start("cutout", {"photo": upload}).json()["data"]["id"]
    for method, path in (("GET", ""), ("POST", "/cancel"), ("GET", "/result")):
        assert stranger.call(method, f"/tasks/{task}{path}").status_code == 404
    assert user.wait(task)["status"] == "succeeded"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"feature": "teleport", "inputs": {}}, "feature"),
        ({"feature": "erase", "inputs": {"photo": "UPLOAD"}}, "inputs.mask"),
        ({"feature": "cutout", "inputs": {}}, "inputs.photo"),
        ({"feature": "cutout", "inputs": {"photo": "UPLOAD", "second": "UPLOAD"}}, "inputs.second"),
        ({"feature": "cutout", "inputs": {"photo": "upload_unknown"}}, "inputs.photo"),
        ({"feature": "cutout", "inputs": {"photo": "😀"}}, "inputs.photo"),
        ({"feature": "expand", "inputs": {"photo": "UPLOAD"}}, "params"),
        ({"feature": "expand", "inputs": {"photo": "UPLOAD"}, "params": {"left": 0.9}}, "params.left"),
        ({"feature": "expand", "inputs": {"photo": "UPLOAD"}, "params": {"up": 0.1}}, "params.up"),
        ({"feature": "cutout", "inputs": {"photo": "UPLOAD"}, "priority": 1}, "priority"),
    ],
)
def test_a_task_that_cannot_be_read_names_the_field_and_holds_nothing(user, body, field):
    """400 with the field; the credits stay."""
    upload = user.upload(photo())
    text = json.dumps(body).replace("UPLOAD", upload)
    answer = user.call("POST", "/tasks", content=text, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert field in [error["field"] for error in answer.json()["errors"]], answer.text
    assert user.credits()["available"] == 100


def test_live_events_are_replayed_from_a_cursor_then_continue(user):
    """SSE and WebSocket tell the same story, and a cursor starts in the middle of it."""
    task = user.start("cutout", {"photo": user.upload(photo())}).json()["data"]["id"]
    story = user.server_events("run.succeeded", ticket=user.ticket(), cursor="0")
    assert story[0]["type"] == "run.queued"
    assert {event["task_id"] for event in story} == {task}
    assert [event["progress"] for event in story] == sorted(event["progress"] for event in story)
    with user.websocket(ticket=user.ticket(), cursor=story[0]["cursor"]) as socket:
        rest = [json.loads(socket.recv(timeout=10)) for _ in story[1:]]
    assert rest == story[1:]


@pytest.mark.parametrize("cursor", ["abc", "-1", "9" * 40, "😀"])
def test_a_cursor_that_is_none_is_refused_before_the_stream_begins(user, cursor):
    """400 on SSE and 4400 on WebSocket, not an answer that breaks off."""
    answer = user.call("GET", "/tasks/events", params={"ticket": user.ticket(), "cursor": cursor})
    assert (answer.status_code, answer.json()["code"] // 100) == (400, 400)
    with pytest.raises(ConnectionClosed) as closed, user.websocket(ticket=user.ticket(), cursor=cursor) as socket:
        socket.recv(timeout=10)
    assert closed.value.rcvd.code == 4400


def test_an_expansion_by_less_than_a_pixel_is_not_charged(user):
    """Nothing would change, so nothing is paid."""
    task = user.start("expand", {"photo": user.upload(photo())}, params={"left": 1e-300}).json()["data"]
    finished = user.wait(task["id"])
    assert (finished["status"], finished["error"]["error"]) == ("failed", "images.bad_expansion")
    assert user.credits()["available"] == 100


def test_progress_is_told_while_the_work_goes_on(user):
    """Between queued and done there is something to watch."""
    task = user.start("cutout", {"photo": user.upload(photo(size=(3000, 2500)))}).json()["data"]["id"]
    story = user.server_events("run.succeeded", ticket=user.ticket(), cursor="0")
    assert [event for event in story if event["task_id"] == task and 0 < event["progress"] < 1]


def test_a_ticket_opens_one_stream(user):
    """The second use is refused, on both kinds of stream; so is none at all."""
    ticket = user.ticket()
    with user.websocket(ticket=ticket):
        pass
    assert user.call("GET", "/tasks/events", params={"ticket": ticket}).status_code == 401
    for query, name in (({"ticket": ticket}, "auth.ticket_invalid"), ({}, "auth.ticket_invalid")):
        with pytest.raises(ConnectionClosed) as closed, user.websocket(**query) as socket:
            socket.recv(timeout=10)
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4401, name)


def test_an_unknown_websocket_address_is_closed_with_4404(user):
    """Refusals of the framework have a code and a name too."""
    url = httpx.URL(user.url).copy_with(scheme="ws", path="/api/v1/nothing")
    with pytest.raises(ConnectionClosed) as closed, connect(str(url), proxy=None) as socket:
        socket.recv(timeout=10)
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4404, "kernel.not_found")
