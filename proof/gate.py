"""The mutant gate: a suite that does not notice a planted fault proves nothing, so each fault must turn it red.

A mutant is one replacement in one file, made in a temporary copy of the package that the tests then import. A control
that replaces nothing goes first: where the suite is red without any fault, no verdict on the others means anything.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

LIMIT_S = 240.0
CONTROL = "no fault at all"

_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
_PASSED, _TESTS_FAILED = 0, 1


class Mutant(NamedTuple):
    """``old``, which stands in ``file`` exactly once, becomes ``new``; ``fault`` says what that breaks."""

    fault: str
    file: str
    old: str
    new: str


class Verdict(NamedTuple):
    """``by`` is the test that noticed, or what kept the tests from running."""

    fault: str
    state: str  # caught, survived or unfit
    by: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.state:8} {self.fault}  ({f'{self.by}, ' if self.by else ''}{self.seconds:.0f} s)"


class Gate:
    """``package`` is the folder that is imported, ``suite`` the arguments of pytest, run in ``folder``."""

    def __init__(self, package: Path, suite: Sequence[str], folder: Path) -> None:
        self._package = package
        self._suite = suite
        self._folder = folder

    def run(self, mutants: Sequence[Mutant], workers: int, tell: Callable[[Verdict], None]) -> list[Verdict]:
        """Try the control and every mutant, so many at a time; ``tell`` hears each verdict as it falls."""
        verdicts = []
        with ThreadPoolExecutor(workers) as pool:
            tries = [pool.submit(self.control), *(pool.submit(self.try_one, mutant) for mutant in mutants)]
            for done in as_completed(tries):
                verdicts.append(done.result())
                tell(verdicts[-1])
        return verdicts

    def control(self) -> Verdict:
        """The package as it is."""
        return self._judge(CONTROL, lambda _: "")

    def try_one(self, mutant: Mutant) -> Verdict:
        """The package with one fault in it."""
        return self._judge(mutant.fault, lambda copy: plant(mutant, copy))

    def _judge(self, fault: str, change: Callable[[Path], str]) -> Verdict:
        began_s = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="daydo-mutant-") as name:
            folder = Path(name)
            copy = folder / self._package.name
            shutil.copytree(self._package, copy, ignore=shutil.ignore_patterns("__pycache__"))
            state, by = "unfit", change(copy)
            if not by:
                state, by = self._test(folder)
        return Verdict(fault, state, by, time.monotonic() - began_s)

    def _test(self, folder: Path) -> tuple[str, str]:
        path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-p", "no:cacheprovider"]
        command += [f"--basetemp={folder / 'tests'}", *self._suite]
        environment = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            ran = subprocess.run(
                command, check=False, cwd=self._folder, env=environment, capture_output=True, text=True, timeout=LIMIT_S
            )
        except subprocess.TimeoutExpired:
            return "caught", "the tests hang"
        if ran.returncode == _PASSED:
            return "survived", ""
        failed = _FAILED.search(ran.stdout)
        if ran.returncode == _TESTS_FAILED and failed:
            return "caught", failed[1].rpartition("/")[2]
        return "unfit", " ".join((ran.stdout + ran.stderr).split())[-300:]


def plant(mutant: Mutant, copy: Path) -> str:
    """Make the replacement in ``copy``; why it cannot be made, or an empty text."""
    file = copy / mutant.file
    text = file.read_text("utf-8") if file.is_file() else ""
    if text.count(mutant.old) != 1:
        return f"{mutant.file} has {text.count(mutant.old)} places that read: {mutant.old}"
    file.write_text(text.replace(mutant.old, mutant.new), "utf-8")
    return ""


def failures(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """What is wrong with the suite, or with the gate."""
    for verdict in verdicts:
        wanted = "survived" if verdict.fault == CONTROL else "caught"
        if verdict.state != wanted:
            yield f"{verdict.fault}: {verdict.state} {verdict.by}".rstrip()
