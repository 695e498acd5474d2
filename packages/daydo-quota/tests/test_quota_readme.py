"""What the README shows runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text("utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS, ids=range(1, len(BLOCKS) + 1))
def test_a_block_runs(block: str, tmp_path: Path) -> None:
    """Each block is a script of its own, warnings being errors."""
    for optional in ("litestar", "fastapi", "sqlalchemy"):
        if f"from {optional}" in block:
            pytest.importorskip(optional)
    script = tmp_path / "block.py"
    script.write_text(block, "utf-8")
    done = subprocess.run([sys.executable, "-W", "error", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_three_ways_are_shown() -> None:
    """A pattern that finds nothing would pass everything."""
    assert len(BLOCKS) == 3
