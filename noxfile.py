"""The commands of the house: what CI runs is what people run. ``nox -l`` lists them."""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nox
from packaging.requirements import Requirement

if sys.version_info < (3, 11):  # noqa: UP036 - nox runs on older ones, and would stop at `tomllib` without a word
    sys.exit("daydo needs Python 3.11 or newer; for example: python3.11 -m pip install 'nox[uv]'")

import tomllib

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "tests"]

LOCK = "requirements.lock"
# What the tests of a package that stands on these floors use of them, beside what the package itself needs.
EMBEDDED = {"daydo-db": "sqlalchemy", "daydo-redis": "embedded"}
# On two cores: many tests wait for a server or a process. Files begin in the order of collection: in that of xdist, by
# their number of tests, one of the longest would be among the last.
IN_PARALLEL = ("--numprocesses=3", "--dist=loadfile", "--no-loadscope-reorder")
# Where bytecode is not to be written, each of hundreds of processes compiles what it imports.
COMPILED_ONCE = {"PYTHONDONTWRITEBYTECODE": ""}


def read_toml(path: Path) -> dict:
    return tomllib.loads(path.read_text("utf-8"))


@dataclass(frozen=True)
class Member:
    """A distribution of this workspace."""

    folder: Path
    name: str
    extras: tuple[str, ...]
    requirements: tuple[Requirement, ...]  # with those of every extra

    @classmethod
    def read(cls, pyproject: Path) -> Member:
        project = read_toml(pyproject)["project"]
        extras = project.get("optional-dependencies", {})
        needs = [*project.get("dependencies", []), *(need for extra in extras.values() for need in extra)]
        parsed = tuple(need for need in map(Requirement, needs) if need.name != project["name"])
        return cls(pyproject.parent, project["name"], tuple(extras), parsed)

    @property
    def module(self) -> str:
        return next((self.folder / "src").glob("*/py.typed")).parent.name

    @property
    def extras_suffix(self) -> str:
        return f"[{','.join(self.extras)}]" if self.extras else ""


PYPROJECTS = sorted([*Path().glob("packages/*/pyproject.toml"), *Path().glob("reference_app/pyproject.toml")])
MEMBERS = [Member.read(path) for path in PYPROJECTS]
# A library promises its lower bounds; an application is installed from the lock.
ALONE = [
    nox.param(member, bounds, id=f"{member.name}, {bounds}")
    for bounds in ("newest", "lowest")
    for member in MEMBERS
    if bounds == "newest" or member.folder.parent.name == "packages"
]


@nox.session
def demo(session: nox.Session) -> None:
    """The main job, with nothing to set up; `-- --once` ends after the tour, `-- --image FILE` takes your photo."""
    install(session, "-e", "reference_app", "--group", "demo")
    run(session, "daydo", "demo", *session.posargs)


@nox.session
def serve(session: nox.Session) -> None:
    """The service alone, set up by DAYDO_… variables."""
    install(session, "-e", "reference_app")
    run(session, "daydo", "serve", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Every test on every back end; `-- --embedded` needs no server; other arguments go to pytest."""
    if "--embedded" not in session.posargs:
        get_servers(session)
    install(session, *everything(), "--group", "tests")
    run(session, "pytest", *IN_PARALLEL, *session.posargs, env=COMPILED_ONCE)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff, the floors and edges of the house (import-linter), and a lock that is not stale."""
    install(session, "--group", "lint")
    run(session, "ruff", "check")
    run(session, "ruff", "format", "--check")
    sources = os.pathsep.join(str(member.folder / "src") for member in MEMBERS)
    run(session, "lint-imports", env={"PYTHONPATH": sources})
    fresh = scratch(session) / LOCK
    shutil.copy(LOCK, fresh)
    compile_lock(session, fresh)
    if not filecmp.cmp(LOCK, fresh, shallow=False):
        session.error(f"{LOCK} is stale: run `nox -s lock` and commit what it changes")


@nox.session
def types(session: nox.Session) -> None:
    """mypy --strict over every package."""
    install(session, *everything(), "--group", "types")
    run(session, "mypy", "--strict", *(word for member in MEMBERS for word in ("-p", member.module)))


@nox.session
def chaos(session: nox.Session) -> None:
    """Databases and Redis are killed and frozen under load: no wrong answer, nothing leaks, healthy within seconds."""
    get_servers(session)
    install(session, *everything(), "--group", "tests")
    run(session, "pytest", "--embedded", "--capture=no", "chaos", *session.posargs)


@nox.session
def proof(session: nox.Session) -> None:
    """Every fault at every statement, crashes, long random histories, and planted faults that the tests must notice.

    `-- --seed N` repeats a run, `--examples N --rounds N` make it longer; the last line is one JSON object.
    """
    get_servers(session)
    install(session, *everything(), "--group", "tests")
    run(session, "python", "-m", "proof", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """`-- NAME`: same-run ratios beside the limit and the strongest rivals; the last line is one JSON object."""
    get_servers(session)
    install(session, *everything(), "--group", "bench")
    run(session, "python", "-m", "benchmarks", *session.posargs)


@nox.session(reuse_venv=False)
@nox.parametrize(("member", "bounds"), ALONE)
def isolated(session: nox.Session, member: Member, bounds: str) -> None:
    """One wheel alone in a fresh environment, tested on the embedded back ends."""
    folder = scratch(session)
    session.run("uv", "build", "--quiet", "--all-packages", "--wheel", "--out-dir", str(folder / "wheels"))
    wheels = folder / "wheels.txt"
    wheels.write_text("".join(f"{wheel_name(path)} @ {path.as_uri()}\n" for path in folder.glob("wheels/*.whl")))
    pins = Path(LOCK) if bounds == "newest" else lowest(session, member, wheels)
    limits = ["--constraints", str(wheels), "--constraints", str(pins)]

    session.install(*limits, member.name)
    session.run("python", "-I", "-c", f"import {member.module}")

    back_ends = [f"{need.name}[{EMBEDDED[need.name]}]" for need in member.requirements if need.name in EMBEDDED]
    session.install(*limits, member.name + member.extras_suffix, *back_ends, "--group", "tests")
    without_sources = shutil.ignore_patterns("src", "__pycache__")
    shutil.copytree(member.folder, folder / member.folder, ignore=without_sources)
    for path in (Path("conftest.py"), Path("pyproject.toml"), *Path().glob(".env.example")):
        shutil.copy(path, folder)
    with session.chdir(folder):
        run(session, "pytest", "--embedded", *IN_PARALLEL, str(member.folder), *session.posargs, env=COMPILED_ONCE)


@nox.session
def lock(session: nox.Session) -> None:
    """Recompile requirements.lock, keeping its pins where they still fit; `-- --upgrade` takes the newest of all."""
    compile_lock(session, Path(LOCK), *session.posargs)


def run(session: nox.Session, *command: str, env: dict[str, str] | None = None) -> None:
    """Run a tool as if it were called from the shell.

    nox sends standard error to standard output unless told otherwise, and kills half a second after Ctrl-C.
    """
    session.run(*command, env=env, stderr=None, interrupt_timeout=20, terminate_timeout=5)


def install(session: nox.Session, *what: str) -> None:
    """One resolution of all that a session needs, at the versions and hashes of the lock."""
    terminal = sys.stderr.isatty()  # where somebody waits for downloads and wants to see them
    output = None if terminal else subprocess.STDOUT
    session.install("--constraints", LOCK, *what, silent=not terminal, stderr=output)


def everything() -> list[str]:
    """Every member with every extra, editable."""
    return [word for member in MEMBERS for word in ("-e", f"{member.folder}{member.extras_suffix}")]


def scratch(session: nox.Session) -> Path:
    """An empty folder of this session's own. (nox's `create_tmp` moves TMPDIR so deep that sockets do not fit.)"""
    folder = Path(session.virtualenv.location).resolve() / "scratch"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def compile_lock(session: nox.Session, target: Path, *options: str) -> None:
    """Pin what the workspace and its groups need, for every platform and Python; nothing in it names a place."""
    groups = read_toml(Path("pyproject.toml"))["dependency-groups"]
    session.run(
        *("uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--generate-hashes"),
        *("--no-annotate", "--no-emit-index-url", "--no-emit-find-links", "--custom-compile-command", "nox -s lock"),
        *(word for member in MEMBERS for word in ("--no-emit-package", member.name)),
        *(word for group in groups for word in ("--group", group)),
        *("--all-extras", "--output-file", str(target), *options, "pyproject.toml", *map(str, PYPROJECTS)),
    )


def lowest(session: nox.Session, member: Member, wheels: Path) -> Path:
    """Pins at the lower bound of everything that ``member`` itself asks for; the lock's versions where they fit."""
    folder = wheels.parent
    bounds = folder / "bounds.txt"
    bounds.write_text("".join(f"{need.name}=={lower_bound(need)}\n" for need in member.requirements))
    pins = folder / "lowest.txt"
    shutil.copy(LOCK, pins)
    session.run(
        *("uv", "pip", "compile", "--quiet", "--no-sources", "--all-extras", "--group", "tests"),
        *("--constraints", str(bounds), "--constraints", str(wheels)),
        *(word for other in MEMBERS for word in ("--no-emit-package", other.name)),
        *("--output-file", str(pins), str(member.folder / "pyproject.toml")),
    )
    return pins


def lower_bound(need: Requirement) -> str:
    bounds = [spec.version for spec in need.specifier if spec.operator in (">=", "~=", "==")]
    if len(bounds) != 1:
        raise ValueError(f"{need}: state one lower bound, and test it")
    return bounds[0]


def wheel_name(wheel: Path) -> str:
    return wheel.name.split("-")[0].replace("_", "-")


def get_servers(session: nox.Session) -> None:
    """Install the test servers that are neither given by URL nor found, where apt may do so."""
    missing = []
    if not os.environ.get("DAYDO_TEST_MYSQL_URL") and not find("mariadbd"):
        missing += ["mariadb-server-core", "mariadb-client-core"]
    if not os.environ.get("DAYDO_TEST_MYSQL_URL") and not find("mariadb-dump"):
        missing += ["mariadb-client"]
    if not os.environ.get("DAYDO_TEST_REDIS_URL") and not find("redis-server", "valkey-server", "redis-check-rdb"):
        missing += ["redis-tools"]
    if not missing:
        return
    if not (find("apt-get") and os.geteuid() == 0):
        session.error(
            "The tests need MariaDB or MySQL with its client programs, and Redis. Install them (no server need run), "
            "or set DAYDO_TEST_MYSQL_URL and DAYDO_TEST_REDIS_URL, or test without them: nox -s tests -- --embedded"
        )
    quietly = {"external": True, "silent": True, "env": {"DEBIAN_FRONTEND": "noninteractive"}}
    patiently = ("-o", "DPkg::Lock::Timeout=120")  # a fresh machine may be upgrading itself
    session.run_install("apt-get", *patiently, "update", **quietly)
    session.run_install("apt-get", *patiently, "install", "--yes", "--no-install-recommends", *missing, **quietly)


def find(*programs: str) -> bool:
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    return any(shutil.which(program, path=path) for program in programs)
