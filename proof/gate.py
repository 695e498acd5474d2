"""The mutant gate: a suite that does not notice a planted fault proves nothing, so each fault must turn it red.

A mutant is one replacement in one file, made in a temporary copy of the package that the tests then import. A control
that replaces nothing goes first: where the suite is red without any fault, no verdict on the others means anything, and
none is asked for. What the control took is also the measure of what a mutant may take. Tests that do not end in a
multiple of that have noticed nothing: perhaps the fault lets them hang, perhaps the machine is slow.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

CONTROL = "no fault at all"
CONTROL_LIMIT_S = 1800.0
# A mutant's, in times of what the control took: that ran alone, and a mutant shares the machine with others.
PATIENCE = 6.0
LEAST_LIMIT_S = 60.0

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
    state: str  # caught, survived, unfit or timed out
    by: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.state:9} {self.fault}  ({f'{self.by}, ' if self.by else ''}{self.seconds:.0f} s)"


class Gate:
    """``package`` is the folder that is imported, ``suite`` the arguments of pytest, run in ``folder``.

    ``given`` are variables for the tests besides those of this process.
    """

    def __init__(
        self, package: Path, suite: Sequence[str], folder: Path, given: Mapping[str, str] | None = None
    ) -> None:
        self._package = package
        self._suite = suite
        self._folder = folder
        self._given = given or {}

    def run(self, mutants: Sequence[Mutant], workers: int, tell: Callable[[Verdict], None]) -> list[Verdict]:
        """Try the control, then every mutant, so many at a time; ``tell`` hears each verdict as it falls."""
        verdicts = [self.control()]
        tell(verdicts[0])
        if verdicts[0].state != "survived":
            return verdicts
        limit_s = max(LEAST_LIMIT_S, PATIENCE * verdicts[0].seconds)
        with ThreadPoolExecutor(workers) as pool:
            tries = [pool.submit(self.try_one, mutant, limit_s) for mutant in mutants]
            for done in as_completed(tries):
                verdicts.append(done.result())
                tell(verdicts[-1])
        return verdicts

    def control(self) -> Verdict:
        """The package as it is."""
        return self._judge(CONTROL, lambda _: "", CONTROL_LIMIT_S)

    def try_one(self, mutant: Mutant, limit_s: float) -> Verdict:
        """The package with one fault in it."""
        return self._judge(mutant.fault, lambda copy: plant(mutant, copy), limit_s)

    def _judge(self, fault: str, change: Callable[[Path], str], limit_s: float) -> Verdict:
        began_s = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="daydo-mutant-") as name:
            folder = Path(name)
            copy = folder / self._package.name
            shutil.copytree(self._package, copy, ignore=shutil.ignore_patterns("__pycache__"))
            state, by = "unfit", change(copy)
            if not by:
                state, by = self._test(folder, limit_s)
        return Verdict(fault, state, by, time.monotonic() - began_s)

    def _test(self, folder: Path, limit_s: float) -> tuple[str, str]:
        path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-p", "no:cacheprovider"]
        command += [f"--basetemp={folder / 'tests'}", *self._suite]
        environment = os.environ | self._given | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            ran = subprocess.run(
                command, check=False, cwd=self._folder, env=environment, capture_output=True, text=True, timeout=limit_s
            )
        except subprocess.TimeoutExpired:
            return "timed out", f"no end after {limit_s:.0f} s"
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
