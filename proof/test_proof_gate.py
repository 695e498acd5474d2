"""The gate itself, on a package of three lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from proof.gate import CONTROL, LEAST_LIMIT_S, PATIENCE, Gate, Mutant, Verdict, failures

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


LIMIT_S = 60.0


def test_a_fault_that_a_test_notices_is_caught(gate: Gate) -> None:
    """And the verdict names the test."""
    verdict = gate.try_one(mutant("amount > available", "amount > available + 1"), LIMIT_S)
    assert (verdict.state, verdict.by) == ("caught", "test_toy.py::test_no_more_than_there_is")
    assert not list(failures([verdict]))


def test_a_change_that_breaks_nothing_is_said_to_survive(gate: Gate) -> None:
    """So is a fault that no test looks for: here the limit itself, which both versions treat alike."""
    verdict = gate.try_one(mutant("amount > available", "not amount <= available"), LIMIT_S)
    assert (verdict.state, verdict.by) == ("survived", "")
    assert list(failures([verdict])) == ["planted: survived"]


def test_the_control_survives_or_the_gate_fails(gate: Gate, tmp_path: Path) -> None:
    """A suite that is red by itself would catch everything."""
    assert gate.control().state == "survived"
    (tmp_path / "suite" / "test_toy.py").write_text("def test_red():\n    assert False\n")
    verdict = gate.control()
    assert (verdict.fault, verdict.state) == (CONTROL, "caught")
    assert list(failures([verdict])) == [f"{CONTROL}: caught test_toy.py::test_red"]
    mutants = [mutant("raise ValueError", "pass")]
    assert [one.fault for one in gate.run(mutants, workers=1, tell=lambda _: None)] == [CONTROL]


def test_tests_that_do_not_end_have_noticed_nothing(gate: Gate) -> None:
    """A machine may be so slow that every mutant's time runs out, those that no test looks for, too."""
    verdict = gate.try_one(mutant("return available - amount", "while True: pass"), 3.0)
    assert (verdict.state, verdict.by) == ("timed out", "no end after 3 s")
    assert list(failures([verdict])) == ["planted: timed out no end after 3 s"]


def test_a_mutants_time_is_a_multiple_of_the_controls(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """A toy's is the least there is; a suite that takes long by itself is waited for."""
    limits = list[float]()
    monkeypatch.setattr(gate, "try_one", lambda mutant, limit_s: limits.append(limit_s) or Verdict("", "", "", 0))
    for seconds in (1.0, 100.0):
        monkeypatch.setattr(gate, "control", lambda seconds=seconds: Verdict(CONTROL, "survived", "", seconds))
        gate.run([mutant("", "")], workers=1, tell=lambda _: None)
    assert limits == [LEAST_LIMIT_S, PATIENCE * 100.0]


def test_the_tests_are_given_what_they_need(gate: Gate, tmp_path: Path) -> None:
    """The address of a server, for one."""
    (tmp_path / "suite" / "test_toy.py").write_text("import os\ndef test_it():\n    assert os.environ['TOY'] == '1'\n")
    assert gate.control().state == "caught"
    assert (
        Gate(tmp_path / "source" / "toy_ledger", ["test_toy.py"], tmp_path / "suite", {"TOY": "1"}).control().state
        == "survived"
    )


@pytest.mark.parametrize("old", ["amount", "no such text", ""])
def test_a_mutant_that_does_not_fit_is_no_catch(gate: Gate, old: str) -> None:
    """Its text must be there exactly once: the code has moved on, and the mutant with it."""
    assert gate.try_one(mutant(old, "x"), LIMIT_S).state == "unfit"


def test_a_mutant_that_cannot_be_imported_is_no_catch(gate: Gate) -> None:
    """Any suite would notice that."""
    assert gate.try_one(mutant("def take(", "def take(("), LIMIT_S).state == "unfit"


def test_every_verdict_is_told_as_it_falls(gate: Gate) -> None:
    """The control's first: without it the others mean nothing."""
    told: list[Verdict] = []
    mutants = [mutant("available - amount", "available + amount"), mutant("raise ValueError", "pass")]
    verdicts = gate.run(mutants, workers=2, tell=told.append)
    assert told == verdicts
    assert verdicts[0].fault == CONTROL
    assert sorted(verdict.state for verdict in verdicts) == ["caught", "caught", "survived"]
