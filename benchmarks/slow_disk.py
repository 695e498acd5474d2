"""A disk that takes longer to keep what it was given, for a benchmark and the servers that it starts.

What COMMIT costs is the disk's answer to fsync: 0.1 ms where a cache answers, milliseconds over a network or where
nothing but the medium counts. A ratio to one-row commits depends on that more than on anything else, so whoever reads
one should know it for a disk like their own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SYNC_MS_VARIABLE = "DAYDO_BENCH_SYNC_MS"

_LIBRARY = f"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

static int late(const char *name, int file) {{
    double seconds = atof(getenv("{SYNC_MS_VARIABLE}")) / 1e3;
    struct timespec wait = {{(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)}};
    nanosleep(&wait, NULL);
    return ((int (*)(int))dlsym(RTLD_NEXT, name))(file);
}}
int fsync(int file) {{ return late("fsync", file); }}
int fdatasync(int file) {{ return late("fdatasync", file); }}
"""


def run_on_slow_disk(sync_ms: float, command: Sequence[str]) -> int:
    """Run ``command`` with every fsync and fdatasync of it and its children ``sync_ms`` later; its exit code.

    Raises:
        RuntimeError: no Linux, or no C compiler.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        raise RuntimeError("a slow disk needs Linux and a C compiler on PATH")
    with tempfile.TemporaryDirectory(prefix="daydo-bench-") as folder:
        source, library = Path(folder, "slow_disk.c"), Path(folder, "slow_disk.so")
        source.write_text(_LIBRARY)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        environment = os.environ | {"LD_PRELOAD": str(library), SYNC_MS_VARIABLE: str(sync_ms)}
        return subprocess.run(command, env=environment, check=False).returncode
