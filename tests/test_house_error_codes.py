"""Error numbers and names are the API's promise to its clients; the page that lists them is never out of date.

`nox -s tests -- tests --regenerate` rewrites docs/reference/error-codes.md.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

from daydo_kernel import DaydoError, declared_errors

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "error-codes.md"
# The last two digits that belong to a package; the rest of the number is the HTTP status.
RANGES = {
    "daydo_kernel": range(2),
    "daydo_auth": range(1, 25),
    "daydo_db": range(25, 30),
    "daydo_redis": range(25, 30),
    "daydo_quota": range(30, 40),
    "daydo_observe": range(40, 50),
    "daydo_cache": range(40, 45),
    "daydo_traffic": range(45, 50),
    "daydo_pipeline": range(50, 60),
    "reference_app": range(60, 80),
}
REGENERATE = "nox -s tests -- tests --regenerate"
HEAD = f"""\
# Error codes

Generated from the error classes; `{REGENERATE}` rewrites this page.

An answer that refuses carries `code` (the number), `error` (the name) and `message` (in the client's language). The
number is the HTTP status × 100 + nn. Switch on the number or the name: both are stable, messages are not. *Retry*
means that the same call may succeed later, unchanged; `Retry-After` says when, where that is known. Every 5xx whose
status is 500 is answered as `kernel.internal`, so that nothing internal reaches a client; its own name is in the log.
"""


def import_everything() -> None:
    for package in RANGES:
        root = importlib.import_module(package)
        for module in pkgutil.walk_packages(root.__path__, f"{package}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)


def package_of(error: type[DaydoError]) -> str:
    return error.__module__.partition(".")[0]


def our_errors() -> list[type[DaydoError]]:
    """Every error of the house, by package and number; those that other tests declare are not ours."""
    import_everything()
    ours = [error for error in declared_errors() if package_of(error) in RANGES]
    return sorted(ours, key=lambda error: (list(RANGES).index(package_of(error)), error.code))


def page() -> Iterator[str]:
    yield HEAD
    for package, errors in groupby(our_errors(), package_of):
        yield f"## {package}\n"
        yield "| number | name | HTTP | retry | English | 中文 | when |"
        yield "|---|---|---|---|---|---|---|"
        for error in errors:
            yield f"| {' | '.join(cells(error))} |"
        yield ""


def cells(error: type[DaydoError]) -> list[str]:
    # Sphinx roles and double back-quotes are for docstrings; the page is Markdown.
    when = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", inspect.cleandoc(error.__doc__ or "").partition("\n\n")[0])
    texts = [error.en, error.zh, when.replace("``", "`").replace("\n", " ")]
    retry = "yes" if error.retryable else ""
    return [
        str(error.code),
        f"`{error.name}`",
        str(error.code // 100),
        retry,
        *(text.replace("|", "\\|") for text in texts),
    ]


def test_page_is_up_to_date(request: pytest.FixtureRequest) -> None:
    """The page says what the classes say."""
    now = "\n".join(page())
    if request.config.getoption("--regenerate"):
        PAGE.write_text(now, "utf-8")
    before = PAGE.read_text("utf-8") if PAGE.exists() else ""
    diff = "\n".join(difflib.unified_diff(before.splitlines(), now.splitlines(), "page", "classes", lineterm="", n=0))
    if diff:
        pytest.fail(f"docs/reference/error-codes.md is out of date: {REGENERATE}\n{diff}", pytrace=False)


def test_numbers_lie_in_their_packages_range() -> None:
    """The last two digits of a number say which package refuses."""
    for error in our_errors():
        assert error.code % 100 in RANGES[package_of(error)], f"{error.__name__} {error.code}"


def test_names_begin_with_their_package() -> None:
    """``quota.hold_expired`` is daydo_quota's; the reference app's begin with the name of a domain."""
    for error in our_errors():
        package = package_of(error).removeprefix("daydo_")
        assert re.fullmatch(r"[a-z]+\.[a-z0-9_]+", error.name), error.name
        assert package == "reference_app" or error.name.startswith(f"{package}."), error.name


def test_every_error_belongs_to_a_family() -> None:
    """Users catch a package's errors by one name: ``except QuotaError``."""
    for error in our_errors():
        families = [base for base in error.__mro__[1:] if issubclass(base, DaydoError) and not base.code]
        assert families[:-1], f"{error.__name__} has no family but DaydoError"
        assert families[-2].__module__.startswith(package_of(error))


def test_every_error_says_when_it_is_raised() -> None:
    """Each class has a docstring; it becomes the page's last column."""
    assert [error.__name__ for error in our_errors() if not inspect.cleandoc(error.__doc__ or "")] == []
