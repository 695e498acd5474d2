"""The README runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README.read_text("utf-8"), re.DOTALL | re.MULTILINE)
IMPORTS = re.findall(r"`(from [\w.]+ import [\w, ]+)`", README.read_text("utf-8"))


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_a_snippet_runs_as_it_stands(snippet: str, tmp_path: Path) -> None:
    """Copied into a file, without anything around it."""
    for extra in ("litestar", "fastapi"):
        if extra in snippet:
            pytest.importorskip(extra)
    # Starlette's test client asks for a successor of httpx; that is its users' affair.
    strict = ("-W", "error", "-W", "ignore:Using `httpx`")
    done = subprocess.run(
        [sys.executable, *strict, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", IMPORTS)
def test_an_import_named_in_the_text_works(line: str) -> None:
    """``daydo_db.migrate`` is the function to those who write it with a dot, and the module to ``from``."""
    exec(line, {})


def test_there_are_snippets() -> None:
    """A pattern that finds nothing would pass everything."""
    assert len(SNIPPETS) >= 4
    assert "from daydo_db.migrate import plan, status" in IMPORTS
