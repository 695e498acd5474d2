"""``python -m proof``: the long tests, then the mutant gate; the last line of standard output is one JSON object."""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from xml.etree import ElementTree

from daydo_db.testing.servers import URLS_VARIABLE, find_servers

from .gate import CONTROL, Gate, Mutant, Verdict, failures
from .mutants import MUTANTS, SERVER_MUTANTS

ROOT = Path(__file__).parents[1]
QUOTA = ROOT / "packages" / "daydo-quota"
# Those that notice most come first: a run ends at the first test that fails.
TESTS = ("conformance", "ledger", "memory", "draft", "races", "blocks", "batcher", "faults", "model")


def main() -> int:
    options = _options()
    began_s = time.monotonic()
    summary: dict[str, object] = {"seed": options.seed, "examples": options.examples, "rounds": options.rounds}
    failed = []
    if "tests" in options.only:
        summary["tests"], red = _run_tests(options)
        failed += red
    if "mutants" in options.only:
        summary["mutants"], alive = _run_gate(options.workers)
        failed += alive
    for failure in failed:
        print(f"FAILED {failure}")
    summary |= {"failed": failed, "seconds": round(time.monotonic() - began_s)}
    print(json.dumps({"proof": summary}))
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nox -s proof --", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="repeats a run")
    parser.add_argument("--examples", type=int, default=400, help="random histories per shard")
    parser.add_argument("--rounds", type=int, default=2, help="how often the crashes are repeated")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--only", choices=("tests", "mutants"), nargs="+", default=("tests", "mutants"))
    return parser.parse_args()


def _run_tests(options: argparse.Namespace) -> tuple[dict[str, int], list[str]]:
    with tempfile.TemporaryDirectory(prefix="daydo-proof-") as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "proof", f"--numprocesses={options.workers}", f"--junitxml={report}"]
        command += [f"--{name}={getattr(options, name)}" for name in ("seed", "examples", "rounds")]
        ran = subprocess.run(command, cwd=ROOT, check=False)
        suite = ElementTree.parse(report).getroot()[0] if report.is_file() else ElementTree.Element("testsuite")
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    bad = [case for case in suite if any(child.tag in ("failure", "error") for child in case)]
    red = [f"{case.get('classname')}::{case.get('name')}" for case in bad]
    return counts, red or ([f"pytest proof ended with {ran.returncode}"] if ran.returncode else [])


def _run_gate(workers: int) -> tuple[dict[str, object], list[str]]:
    print("planted faults, on SQLite:", flush=True)
    verdicts = _try(MUTANTS, ["--embedded", *_files(TESTS)], {}, workers)
    with ExitStack() as stack:
        server = next(find_servers(stack.callback))
        for names, mutants in SERVER_MUTANTS.items():
            print(f"planted faults, on {server.version}, {' and '.join(names)}:", flush=True)
            verdicts += _try(mutants, ["-k", "mariadb or mysql", *_files(names)], {URLS_VARIABLE: server.url}, workers)
    planted = [verdict.state for verdict in verdicts if verdict.fault != CONTROL]
    counts = {state: planted.count(state) for state in ("caught", "survived", "unfit", "timed out")}
    return {"planted": len(planted), **counts}, list(failures(verdicts))


def _try(mutants: Sequence[Mutant], suite: Sequence[str], given: Mapping[str, str], workers: int) -> list[Verdict]:
    gate = Gate(QUOTA / "src" / "daydo_quota", [f"--rootdir={ROOT}", *suite], ROOT, given)
    return gate.run(mutants, workers, lambda verdict: print(verdict, flush=True))


def _files(names: Sequence[str]) -> list[str]:
    return [str(QUOTA / "tests" / f"test_quota_{name}.py") for name in names]


if __name__ == "__main__":
    sys.exit(main())
