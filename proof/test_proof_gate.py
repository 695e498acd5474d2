"""The gate itself, on a package of three lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from proof.gate import CONTROL, Gate, Mutant, Verdict, failures

PACKAGE = """
def take(available, amount):
    if amount > available:
        raise ValueError
    return available - amount
"""
SUITE = """
import pytest
import toy_ledger

def test_units_are_taken():
    assert toy_ledger.take(10, 4) == 6

def test_no_more_than_there_is():
    with pytest.raises(ValueError):
        toy_ledger.take(3, 4)
"""


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    package = tmp_path / "source" / "toy_ledger"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(PACKAGE)
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "test_toy.py").write_text(SUITE)
    (tmp_path / "suite" / "pytest.ini").write_text("[pytest]\n")
    return Gate(package, ["test_toy.py"], tmp_path / "suite")


def mutant(old: str, new: str) -> Mutant:
    return Mutant("planted", "__init__.py", old, new)


def test_a_fault_that_a_test_notices_is_caught(gate: Gate) -> None:
    """And the verdict names the test."""
    verdict = gate.try_one(mutant("amount > available", "amount > available + 1"))
    assert (verdict.state, verdict.by) == ("caught", "test_toy.py::test_no_more_than_there_is")
    assert not list(failures([verdict]))


def test_a_change_that_breaks_nothing_is_said_to_survive(gate: Gate) -> None:
    """So is a fault that no test looks for: here the limit itself, which both versions treat alike."""
    verdict = gate.try_one(mutant("amount > available", "not amount <= available"))
    assert (verdict.state, verdict.by) == ("survived", "")
    assert list(failures([verdict])) == ["planted: survived"]


def test_the_control_survives_or_the_gate_fails(gate: Gate, tmp_path: Path) -> None:
    """A suite that is red by itself would catch everything."""
    assert gate.control().state == "survived"
    (tmp_path / "suite" / "test_toy.py").write_text("def test_red():\n    assert False\n")
    verdict = gate.control()
    assert (verdict.fault, verdict.state) == (CONTROL, "caught")
    assert list(failures([verdict])) == [f"{CONTROL}: caught test_toy.py::test_red"]


@pytest.mark.parametrize("old", ["amount", "no such text", ""])
def test_a_mutant_that_does_not_fit_is_no_catch(gate: Gate, old: str) -> None:
    """Its text must be there exactly once: the code has moved on, and the mutant with it."""
    assert gate.try_one(mutant(old, "x")).state == "unfit"


def test_a_mutant_that_cannot_be_imported_is_no_catch(gate: Gate) -> None:
    """Any suite would notice that."""
    assert gate.try_one(mutant("def take(", "def take((")).state == "unfit"


def test_every_verdict_is_told_as_it_falls(gate: Gate) -> None:
    """The control's, too, which is judged beside the others."""
    told: list[Verdict] = []
    mutants = [mutant("available - amount", "available + amount"), mutant("raise ValueError", "pass")]
    verdicts = gate.run(mutants, workers=2, tell=told.append)
    assert told == verdicts
    assert sorted(verdict.state for verdict in verdicts) == ["caught", "caught", "survived"]
