"""What users of a package can name is written down, so that changing it is a decision.

`nox -s tests -- tests --regenerate` rewrites tests/public_api/ after a change that is meant; its diff is then part
of the review, and CONTRIBUTING says which changes need a deprecation first.
"""

from __future__ import annotations

import difflib
import enum
import importlib
import inspect
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any

import msgspec
import pytest

from daydo_kernel import Config, DaydoError

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path.parent.name.replace("-", "_") for path in ROOT.glob("packages/*/pyproject.toml"))
# The public doors of a package besides itself; every other module is a room of its own.
DOORS = (
    *(
        "addresses",
        "asgi",
        "backup",
        "errors",
        "expand",
        "explain",
        "fields",
        "litestar",
        "metrics",
        "migrate",
        "piccolo",
    ),
    *("prometheus", "serving", "sharding", "snapshots", "sqlalchemy", "testing", "watchdog", "wechat"),
)


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_and_signatures(package: str, request: pytest.FixtureRequest) -> None:
    """Names and signatures are those in tests/public_api/."""
    written = ROOT / "tests" / "public_api" / f"{package}.txt"
    now = "\n".join(describe_package(package)) + "\n"
    if request.config.getoption("--regenerate"):
        written.write_text(now, "utf-8")
    before = written.read_text("utf-8") if written.exists() else ""
    diff = "\n".join(difflib.unified_diff(before.splitlines(), now.splitlines(), "written", "now", lineterm="", n=1))
    if diff:
        fix = "if that is meant: nox -s tests -- tests --regenerate"
        pytest.fail(f"the public API of {package} changed; {fix}\n{diff}", pytrace=False)


def test_every_extra_is_a_door() -> None:
    """An extra called like a framework's edge opens a module of that name, or the same extra of a floor."""
    for pyproject in ROOT.glob("packages/*/pyproject.toml"):
        project = tomllib.loads(pyproject.read_text("utf-8"))["project"]
        package = project["name"].replace("-", "_")
        for extra, needs in project.get("optional-dependencies", {}).items():
            if extra not in DOORS or all(need.startswith(("daydo-db[", "daydo-redis[")) for need in needs):
                continue
            assert importlib.util.find_spec(f"{package}.{extra}"), f"{package}[{extra}] has no {package}.{extra}"


def describe_package(package: str) -> Iterator[str]:
    seen: set[int] = set()
    yield from describe_module(importlib.import_module(package), seen)
    for door in DOORS:
        if importlib.util.find_spec(f"{package}.{door}") is not None:
            yield from describe_module(importlib.import_module(f"{package}.{door}"), seen)


def describe_module(module: ModuleType, seen: set[int]) -> Iterator[str]:
    """Its names, without those that were shown before: a class is described at its front door."""
    yield module.__name__
    # A room of the package has no __all__: what it defines itself is what it offers.
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and not name.startswith(("_", "pytest_"))
    ]
    for name in sorted(names):
        value = getattr(module, name)
        if id(value) not in seen:
            seen.add(id(value))
            yield from describe(name, value)


def describe(name: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value):
        yield from describe_class(name, value)
    elif inspect.isfunction(value):
        yield f"  {signature(name, value)}"
    elif isinstance(value, UnionType):
        yield f"  {name} = {value}"
    else:
        yield f"  {name}: {type(value).__name__}"


def describe_class(name: str, cls: type) -> Iterator[str]:
    bases = ", ".join(base.__name__ for base in cls.__bases__ if base is not object)
    yield f"  class {name}({bases})" if bases else f"  class {name}"
    yield from (f"    {made}" for made in makings(cls))
    for attribute, raw in sorted(vars(cls).items()):
        if attribute.startswith(("_", "test_")):
            continue
        if isinstance(raw, property):
            yield f"    {attribute}: {inspect.signature(raw.fget).return_annotation} (property)"
        elif isinstance(raw, classmethod | staticmethod):
            yield f"    {type(raw).__name__} {signature(attribute, raw.__func__)}"
        elif inspect.isfunction(raw):
            yield f"    {signature(attribute, raw)}"


def makings(cls: type) -> Iterator[str]:
    """How one is made, or what it is made of."""
    if issubclass(cls, DaydoError) and cls.code:
        yield f"{cls.code} {cls.name}{' retryable' if cls.retryable else ''}"
    elif issubclass(cls, enum.Enum):
        yield from (f"{member.name} = {member.value!r}" for member in cls)
    elif issubclass(cls, msgspec.Struct):
        yield from fields_of(cls)
    elif issubclass(cls, tuple):
        yield from (f"{field}: {cls.__annotations__[field]}" for field in cls._fields)
    elif getattr(vars(cls).get("__init__"), "__module__", "") == cls.__module__:  # Protocol gives subclasses its own
        yield signature("__init__", cls.__init__)


def fields_of(cls: type[msgspec.Struct]) -> Iterator[str]:
    own = vars(cls).get("__annotations__", {})
    for field in msgspec.structs.fields(cls):
        if field.name in own:
            yield f"{field.name}: {own[field.name]}" + ("" if field.required else f" = {shown(field.default)}")


def signature(name: str, function: Any) -> str:
    bare = inspect.signature(function)
    parameters = [
        parameter.replace(
            annotation=Written.annotation(parameter.annotation),
            default=parameter.default if parameter.default is parameter.empty else Written(shown(parameter.default)),
        )
        for parameter in bare.parameters.values()
        if parameter.name not in ("self", "cls")
    ]
    written = bare.replace(parameters=parameters, return_annotation=Written.annotation(bare.return_annotation))
    waits = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    return f"{'async ' if waits else ''}{name}{written}"


class Written:
    """Text that inspect prints as it is."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text

    @classmethod
    def annotation(cls, value: Any) -> Any:
        return cls(value) if isinstance(value, str) else value


def shown(value: Any) -> str:
    """A default as a reader would write it; nothing that differs from run to run."""
    if isinstance(value, Config) and value == type(value)():
        return f"{type(value).__name__}()"
    text = "…" if value is msgspec.NODEFAULT else repr(value)
    return "…" if " at 0x" in text else text
