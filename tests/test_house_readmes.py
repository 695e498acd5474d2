"""What the pages of the house show runs, and where they point exists. (Each package tests its own README.)"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
EVERY_PAGE = [*PAGES, *ROOT.glob("packages/*/*.md"), *ROOT.glob("reference_app/*.md")]
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(PYTHON.findall(page.read_text("utf-8")), 1)
]
COMMAND = "python -m pip install 'nox[uv]' && python -m nox -s {}"


@pytest.mark.parametrize("block", BLOCKS)
def test_block_runs(block: str, tmp_path: Path) -> None:
    """Each Python block is a script of its own, warnings being errors."""
    script = tmp_path / "block.py"
    script.write_text(block, "utf-8")
    done = subprocess.run([sys.executable, "-W", "error", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link and picture is a file of the checkout."""
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    inside = [link.partition("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)]
    assert [link for link in inside if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
@pytest.mark.parametrize("session", ["demo", "tests"])
def test_command_lines_are_complete(page: str, session: str) -> None:
    """Both READMEs carry the two command lines that work on a fresh machine; CI runs them from there."""
    assert COMMAND.format(session) in (ROOT / page).read_text("utf-8").splitlines()


def test_both_languages_say_the_same() -> None:
    """The Chinese README has the sections, the tables, the code and the links of the English one."""
    english, chinese = ((ROOT / name).read_text("utf-8") for name in ("README.md", "README.zh-CN.md"))
    for what in (r"^#+ ", r"^\|", r"^```", r"^- ", r"^python .*$"):
        assert len(re.findall(what, english, re.MULTILINE)) == len(re.findall(what, chinese, re.MULTILINE)), what
    links = r"\]\(([^)]+)\)"
    assert set(re.findall(links, english)) - {"README.zh-CN.md"} == set(re.findall(links, chinese)) - {"README.md"}


def test_every_package_tests_its_own_readme() -> None:
    """Each package has a test that runs its README, so that it also runs where the wheel is alone."""
    packages = [path.parent for path in ROOT.glob("packages/*/pyproject.toml")]
    assert [folder.name for folder in packages if not list(folder.glob("tests/test_*readme*.py"))] == []
