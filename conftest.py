"""Back ends for every test: the plugins that `daydo_db` and `daydo_redis` ship to their users, where installed."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

pytest_plugins = [f"{floor}.testing" for floor in ("daydo_db", "daydo_redis") if find_spec(floor) is not None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate", action="store_true", help="rewrite what the tests compare with: public API, error codes"
    )
    if not pytest_plugins:  # a package that stands on neither floor, alone in `nox -s isolated`
        parser.addoption("--embedded", action="store_true", help="nothing here uses a back end")
