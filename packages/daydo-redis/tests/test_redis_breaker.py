"""The breaker alone, against a model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from daydo_redis.breaker import Breaker

STEPS = st.lists(
    st.one_of(
        st.sampled_from([True, False, None]).map(lambda answered: ("call", answered)),
        st.floats(0.0, 2.0).map(lambda seconds: ("wait", seconds)),
    ),
    max_size=60,
)


@given(steps=STEPS, limit=st.integers(1, 4))
def test_refuses_exactly_while_open(steps: list[tuple[str, bool | float | None]], limit: int) -> None:
    """Calls one after another: refused if and only if the last ``limit`` were silent and open_s is not over."""
    now_s, silent, opened_s = 0.0, 0, 0.0
    breaker = Breaker(limit, 1.0, lambda: now_s)
    for kind, value in steps:
        if kind == "wait":
            now_s += float(value or 0.0)
            continue
        refused = silent >= limit and now_s < opened_s + 1.0
        assert (breaker.admit() > 0) == refused
        if refused:
            continue
        breaker.report(None if value is None else bool(value))
        if value is True:
            silent = 0
        elif value is False:
            silent += 1
            opened_s = now_s
        assert breaker.is_open == (silent >= limit)


def test_admits_one_probe() -> None:
    """When open_s is over, one call goes out and the others are told to come back until it has reported."""
    now_s = 0.0
    breaker = Breaker(1, 1.0, lambda: now_s)
    assert breaker.admit() == 0
    breaker.report(False)
    assert breaker.admit() == 1.0
    now_s = 0.75
    assert breaker.admit() == 0.25
    now_s = 1.0
    assert breaker.admit() == 0
    assert breaker.admit() == 1.0
    breaker.report(True)
    assert [breaker.admit(), breaker.admit()] == [0, 0]


def test_latecomers_do_not_end_the_probe() -> None:
    """A call admitted before the breaker opened and answered during the probe's flight closes it: that is life."""
    now_s = 0.0
    breaker = Breaker(1, 1.0, lambda: now_s)
    breaker.admit()
    breaker.admit()
    breaker.report(False)
    now_s = 1.0
    assert breaker.admit() == 0
    breaker.report(True)
    assert not breaker.is_open
