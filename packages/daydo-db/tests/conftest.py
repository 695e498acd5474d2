import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("daydo_db.testing")

from toy_package import ToyPackage  # noqa: E402 - it imports what is registered above


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ToyPackage]:
    """A package without any schema file yet."""
    monkeypatch.syspath_prepend(tmp_path)
    yield ToyPackage(tmp_path)
    sys.modules.pop(ToyPackage.name, None)
