"""``python -m benchmarks NAME``: tables on standard error, one JSON object as the last line of standard output."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from importlib import import_module

from .slow_disk import SYNC_MS_VARIABLE, run_on_slow_disk

NAMES = ("auth", "cache", "db", "quota", "redis", "traffic")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--sync-ms", type=float, default=0.0, help="let every fsync take so much longer, 0 to 1000")
    asked = parser.parse_args()
    if not 0 <= asked.sync_ms <= 1_000:
        parser.error("--sync-ms is from 0 to 1000")
    slowed_ms = float(os.environ.get(SYNC_MS_VARIABLE, "0"))
    if asked.sync_ms != slowed_ms:
        return run_on_slow_disk(asked.sync_ms, [sys.executable, "-m", "benchmarks", *sys.argv[1:]])
    report = asyncio.run(import_module(f"benchmarks.{asked.name}").run())
    disk = {"sync_ms": slowed_ms} if slowed_ms else {}
    print(json.dumps({"bench": asked.name, **disk, "ratios": report.ratios, "figures": report.figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
