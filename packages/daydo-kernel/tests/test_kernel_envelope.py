"""Every JSON answer has one shape, and no error tells a client more than it should."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from daydo_kernel import (
    BadRequest,
    DaydoError,
    Draining,
    FieldError,
    NotFound,
    NotStarted,
    Page,
    RequestContext,
    RequestRefused,
    ok,
    render,
    reset_context,
    set_context,
)


def decode(body: bytes) -> dict[str, Any]:
    return msgspec.json.decode(body, type=dict[str, Any])


def test_success_has_code_zero() -> None:
    """A payload is wrapped with code 0, a request id and the time in UTC."""
    answer = decode(msgspec.json.encode(ok({"id": 1})))
    assert (answer["code"], answer["message"], answer["data"]) == (0, "ok", {"id": 1})
    assert answer["request_id"].startswith("req_")
    assert answer["timestamp"].endswith("Z")


def test_request_id_is_the_contexts() -> None:
    """Inside a request, answers and refusals carry its id and its language."""
    token = set_context(RequestContext(request_id="req_1", locale="en"))
    try:
        assert ok(None).request_id == "req_1"
        refusal = decode(render(NotFound()).body)
    finally:
        reset_context(token)
    assert (refusal["request_id"], refusal["message"]) == ("req_1", "There is nothing here.")


def test_last_page_has_no_cursor() -> None:
    """``next_cursor`` is absent, not null, on the last page."""
    assert msgspec.json.encode(Page(items=[1])) == b'{"items":[1]}'
    assert msgspec.json.encode(Page(items=[1], next_cursor="c")) == b'{"items":[1],"next_cursor":"c"}'


def test_refusal_names_fields_in_the_clients_language() -> None:
    """A refused input is named with a message in the language that was asked for."""
    error = BadRequest(fields=(FieldError("photo", "缺少文件", "The file is missing"),))
    rendered = render(error, "en", "req_2")
    body = decode(rendered.body)
    assert (rendered.status, body["code"], body["error"]) == (400, 40000, "kernel.bad_request")
    assert body["errors"] == [{"field": "photo", "message": "The file is missing"}]
    assert rendered.headers["content-language"] == "en"
    assert decode(render(error, "zh-CN").body)["errors"][0]["message"] == "缺少文件"


def test_refusal_without_fields_has_no_list() -> None:
    """``errors`` is absent where no field is to blame."""
    assert "errors" not in decode(render(NotFound()).body)


@pytest.mark.parametrize("error", [RuntimeError("password=hunter2"), NotStarted(part="Vault")])
def test_internal_errors_hide_their_text(error: BaseException) -> None:
    """Whatever is not a declared refusal, or is a programmer's mistake, reads as one internal error."""
    rendered = render(error, "en")
    assert rendered.status == 500
    assert decode(rendered.body)["error"] == "kernel.internal"
    assert b"hunter2" not in rendered.body
    assert b"Vault" not in rendered.body


@pytest.mark.parametrize(("wait_s", "header"), [(0.2, "1"), (1.2, "2"), (30, "30")])
def test_retry_after_is_whole_seconds(wait_s: float, header: str) -> None:
    """Retry-After rounds up and is never zero, or clients would come back too early."""
    assert render(Draining(retry_after_s=wait_s)).headers["retry-after"] == header


def test_whatever_may_be_retried_says_when() -> None:
    """A retryable error that knows no better says one second; one that is not retryable says nothing."""
    assert render(Draining()).headers["retry-after"] == "1"
    assert "retry-after" not in render(NotFound()).headers


def test_status_can_be_the_frameworks() -> None:
    """A framework's own 4xx keeps its status, and the number follows it."""
    rendered = render(RequestRefused(), status=418)
    assert (rendered.status, decode(rendered.body)["code"]) == (418, 41800)


def test_every_declared_error_renders() -> None:
    """Each error of the kernel renders in both languages once its facts are known."""
    for error in (BadRequest(), NotFound(), Draining()):
        assert isinstance(error, DaydoError)
        chinese, english = (decode(render(error, locale).body)["message"] for locale in ("zh-CN", "en"))
        assert chinese != english
