"""House rules that are worth a test; each names what to do instead."""

from __future__ import annotations

import ast
import os
import re
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
MEMBERS = [*PACKAGES, ROOT / "reference_app"]
KERNEL = ROOT / "packages" / "daydo-kernel"

every_package = pytest.mark.parametrize("folder", PACKAGES, ids=lambda folder: folder.name)
every_member = pytest.mark.parametrize("folder", MEMBERS, ids=lambda folder: folder.name)


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))


def sources(folder: Path) -> list[Path]:
    return sorted((folder / "src").rglob("*.py"))


def shipped_for_tests(path: Path) -> bool:
    return path.name == "testing.py" or path.parent.name == "testing"


def uses(path: Path, *dotted: str) -> Iterator[str]:
    """Where a module names one of ``dotted`` (``time.time``), by attribute or by import."""
    text = path.read_text("utf-8")
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        names = [f"{node.module}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else [name]
        for each in set(names) & set(dotted):
            yield f"{path.relative_to(ROOT)}:{node.lineno}: {each} in {lines[node.lineno - 1].strip()}"


def committed() -> Iterator[Path]:
    """Every file of the checkout that is not ignored; a copy without .git has the same."""
    ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text("utf-8").splitlines()]
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name != ".git" and not any(fnmatch(name, each) for each in ignored)]
        yield from (Path(folder, name) for name in names if not any(fnmatch(name, each) for each in ignored))


# -- packages ----------------------------------------------------------------------------------------------------------


@every_member
def test_package_is_furnished(folder: Path) -> None:
    """Each package has a README, py.typed, tests, and a changelog if it is released by itself."""
    (package,) = [path.parent for path in folder.glob("src/*/py.typed")]
    assert (package / "__init__.py").exists()
    for name in ("README.md", "tests", *(["CHANGELOG.md"] if folder in PACKAGES else [])):
        assert (folder / name).exists(), f"{folder.name} has no {name}"


@every_member
def test_packages_are_released_together(folder: Path) -> None:
    """Lockstep versions, one licence, one build back end, and ``~=`` between our packages."""
    metadata = project(folder)
    assert metadata["project"]["version"] == project(KERNEL)["project"]["version"]
    assert metadata["project"]["license"] == "MIT"
    assert metadata["project"]["requires-python"] == ">=3.11"
    assert metadata["build-system"] == project(KERNEL)["build-system"]
    extras = metadata["project"].get("optional-dependencies", {}).values()
    needs = [*metadata["project"].get("dependencies", []), *(need for extra in extras for need in extra)]
    needs = [need for need in needs if not need.startswith(f"{folder.name}[")]  # one extra naming another
    version = metadata["project"]["version"]
    ours = [need for need in needs if need.startswith("daydo-")]
    assert all(re.fullmatch(rf"daydo-[a-z]+(\[[a-z,]+\])?~={version}", need) for need in ours), ours
    others = [need for need in needs if need not in ours]
    assert all(">=" in need or "==" in need for need in others), "state a lower bound, and test it (nox -s isolated)"


@every_package
def test_front_door_is_names_only(folder: Path) -> None:
    """``__init__`` is a docstring, imports from inside, and ``__all__`` in order: it fits on a screen."""
    (front,) = folder.glob("src/*/__init__.py")
    docstring, *statements, names = ast.parse(front.read_text("utf-8")).body
    assert isinstance(docstring, ast.Expr)
    assert all(isinstance(statement, ast.ImportFrom) and statement.level == 1 for statement in statements)
    assert isinstance(names, ast.Assign | ast.AnnAssign)
    imported = {alias.asname or alias.name for statement in statements for alias in statement.names}
    assert set(ast.literal_eval(names.value)) == imported


@every_member
def test_no_room_without_a_name(folder: Path) -> None:
    """``utils``, ``helpers``, ``common`` and ``misc`` say nothing: name a module for what is in it."""
    assert [path.name for path in sources(folder) if re.match(r"(utils?|helpers?|common|misc)\b", path.stem)] == []


def test_test_files_have_names_of_their_own() -> None:
    """Equal basenames collide: ``test_quota_planner.py``, not ``test_planner.py``."""
    names = [path.name for folder in MEMBERS for path in folder.glob("tests/**/test_*.py")]
    assert len(names) == len(set(names))
    for folder in PACKAGES:
        prefix = f"test_{folder.name.removeprefix('daydo-')}_"
        assert [path.name for path in folder.glob("tests/**/test_*.py") if not path.name.startswith(prefix)] == []


@every_member
def test_tests_are_sentences(folder: Path) -> None:
    """Every test says in one sentence what holds."""
    for path in (folder / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                assert ast.get_docstring(node), f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} says nothing"


# -- what libraries do not do ------------------------------------------------------------------------------------------


@every_package
def test_time_is_passed_in(folder: Path) -> None:
    """The wall clock is the Clock's: a library that reads it cannot be tested without sleeping."""
    own = [KERNEL / "src" / "daydo_kernel" / name for name in ("clock.py", "ids.py")]
    found = [
        use
        for path in sources(folder)
        if path not in own and not shipped_for_tests(path)
        for use in uses(path, "time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today")
    ]
    assert found == [], "take clock: Clock | None, or SystemClock() for what decides nothing"


@every_package
def test_libraries_do_not_read_the_environment(folder: Path) -> None:
    """Only the application reads the environment; a library takes values. (PATH, and test plugins, are no settings.)"""
    found = [
        use
        for path in sources(folder)
        if not shipped_for_tests(path)
        for use in uses(path, "os.environ", "os.getenv", "os.environb")
        if '.get("PATH"' not in use
    ]
    assert found == [], "add a field to the noun's config"


# -- the workspace -----------------------------------------------------------------------------------------------------


def test_floors_know_every_package() -> None:
    """A package that import-linter does not know about has no rules."""
    known = set(project(ROOT)["tool"]["importlinter"]["root_packages"])
    assert known == {path.parent.name for folder in MEMBERS for path in folder.glob("src/*/py.typed")}


def test_lock_names_no_place() -> None:
    """The lock says what, never from where: no index, no host, no path, none of our own packages; never asyncpg."""
    lines = (ROOT / "requirements.lock").read_text("utf-8").splitlines()
    pin = re.compile(r"#.*|[a-z0-9.-]+==[\w.!+]+( ; [^/]+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?")
    assert [line for line in lines if not pin.fullmatch(line)] == []
    assert "/" not in "".join(line for line in lines if not line.lstrip().startswith("--hash"))
    assert [line for line in lines if line.startswith(("daydo", "asyncpg"))] == []


def test_no_file_names_a_registry_or_a_machine() -> None:
    """What is committed works anywhere: no registry hosts, no folders of somebody's machine."""
    registries = ("pypi" + ".org", "files.python" + "hosted.org", "registry.npm" + "js.org", "deb.deb" + "ian.org")
    machines = ("/wo" + "rk/", "/ro" + "ot/", "/home" + "/runner")
    for path in committed():
        text = path.read_text("utf-8", errors="replace")
        found = [place for place in (*registries, *machines) if place in text]
        assert found == [], path.relative_to(ROOT)
