from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_the_readme_runs(block: str, tmp_path: Path) -> None:
    """Every Python block of the README is a script that ends well."""
    subprocess.run([sys.executable, "-W", "error", "-c", block], check=True, timeout=60, cwd=tmp_path)


def test_the_readme_names_every_metric(auth: Any) -> None:
    """The table of metrics is complete."""
    named = re.findall(r"^\| `(daydo_auth_\w+)`", TEXT, re.MULTILINE)
    assert {family.name for family in auth.metrics.snapshot()} == set(named)
