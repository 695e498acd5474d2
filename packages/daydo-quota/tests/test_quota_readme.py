"""What the README shows runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
PYTEST = ["-m", "pytest", "--disable-plugin-autoload", "-ppytest_asyncio.plugin", "-oasyncio_mode=auto"]
PYTEST += ["-oasyncio_default_fixture_loop_scope=function"]
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text("utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS, ids=range(1, len(BLOCKS) + 1))
def test_a_block_runs(block: str, tmp_path: Path) -> None:
    """Each block is a script of its own or, where it has tests, a module for pytest; warnings are errors."""
    for optional in ("litestar", "fastapi", "sqlalchemy"):
        if f"from {optional}" in block:
            pytest.importorskip(optional)
    script = tmp_path / "test_block.py"
    script.write_text(block, "utf-8")
    run = [sys.executable, "-W", "error", *(PYTEST if "class Test" in block else ()), script]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_fixture_on_another_clock_is_told_which_to_take(tmp_path: Path) -> None:
    """Not by tests of the ledger that fail for no reason one can see."""
    [block] = [block for block in BLOCKS if "class Test" in block]
    script = tmp_path / "test_block.py"
    script.write_text(block.replace("Ledger(db, clock=clock)", "Ledger(db)"), "utf-8")
    run = [sys.executable, *PYTEST, "-k", "has_its_time", script]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Failed: the fixture ledger must run on the fixture clock: Ledger(db, clock=clock)" in done.stdout


def test_the_four_ways_are_shown() -> None:
    """A pattern that finds nothing would pass everything."""
    assert len(BLOCKS) == 4
