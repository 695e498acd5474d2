"""``python -m benchmarks NAME``: tables on standard error, one JSON object as the last line of standard output."""

from __future__ import annotations

import asyncio
import json
import sys
from importlib import import_module

NAMES = ("auth", "cache", "db", "quota", "redis", "traffic")


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1] not in NAMES:
        sys.stderr.write(f"name one of: {', '.join(NAMES)}\n")
        return 2
    name = sys.argv[1]
    report = asyncio.run(import_module(f"benchmarks.{name}").run())
    print(json.dumps({"bench": name, "ratios": report.ratios, "figures": report.figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
