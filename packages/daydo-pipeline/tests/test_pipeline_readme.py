"""What the README shows runs, and its table of metrics is complete."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from daydo_db import Database
from daydo_pipeline import Flow, Runs

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS, ids=range(1, len(BLOCKS) + 1))
def test_block_runs(block, tmp_path):
    """Each block is a script of its own, warnings being errors."""
    script = tmp_path / "block.py"
    script.write_text(block, "utf-8")
    done = subprocess.run([sys.executable, "-W", "error", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_metric_is_in_the_table():
    """A metric that is added is described, one that goes takes its line with it."""

    async def work(call):
        return None

    flow = Flow("x")
    flow.step("work", work)
    families = Runs(Database("sqlite://"), flows=[flow]).metrics.snapshot()
    assert {family.name for family in families} == set(re.findall(r"^\| `(daydo_\w+)`", README, re.MULTILINE))
