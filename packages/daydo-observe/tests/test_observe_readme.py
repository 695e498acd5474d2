from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text("utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_the_readme_runs(block: str) -> None:
    """Every Python block of the README is a script that ends well."""
    subprocess.run([sys.executable, "-W", "error", "-c", block], check=True, timeout=60)


def test_the_readme_names_every_metric(house: object) -> None:
    """The table of metrics is complete."""
    families = house.observe.metrics.snapshot()  # type: ignore[attr-defined]
    named = re.findall(r"^\| `(daydo_\w+)`", README.read_text("utf-8"), re.MULTILINE)
    assert {family.name for family in families} == set(named)
