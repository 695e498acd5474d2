"""Language and request as the logs see them."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daydo_kernel import RequestContext, get_context, isoformat, negotiate_locale, reset_context, set_context


@pytest.mark.parametrize(
    ("header", "locale"),
    [
        ("", "zh-CN"),
        ("en", "en"),
        ("en-US,en;q=0.9,zh;q=0.8", "en"),
        ("zh-TW,zh;q=0.9,en;q=0.8", "zh-CN"),
        ("en;q=0.5, zh-CN;q=0.9", "zh-CN"),
        ("en, zh", "en"),
        ("zh, en", "zh-CN"),
        ("fr, de;q=0.5", "zh-CN"),
        ("EN-gb", "en"),
        ("en;q=0", "zh-CN"),
        ("en;q=nonsense, zh;q=0.1", "zh-CN"),
        ("fr, en;q=0.1", "en"),
    ],
)
def test_language_is_negotiated(header: str, locale: str) -> None:
    """The best of Chinese and English wins, the first on a tie; Chinese where neither is asked for."""
    assert negotiate_locale(header) == locale


@given(st.text())
def test_any_header_gives_a_language(header: str) -> None:
    """No header a client can send breaks an answer."""
    assert negotiate_locale(header) in ("zh-CN", "en")


async def test_context_is_the_tasks_own() -> None:
    """Two requests served at the same time do not see each other's context."""

    async def serve(request_id: str) -> str:
        token = set_context(RequestContext(request_id=request_id))
        await asyncio.sleep(0)
        seen = get_context()
        reset_context(token)
        assert seen is not None
        return seen.request_id

    assert await asyncio.gather(serve("a"), serve("b")) == ["a", "b"]
    assert get_context() is None


@pytest.mark.parametrize(
    ("now_us", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_700_000_000_123_456, "2023-11-14T22:13:20.123Z"),
        (1_700_000_000_999_999, "2023-11-14T22:13:20.999Z"),
    ],
)
def test_time_is_written_in_utc_milliseconds(now_us: int, text: str) -> None:
    """Microseconds are cut, never rounded into the next second."""
    assert isoformat(now_us) == text
