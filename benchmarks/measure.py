"""Fair comparison on a machine that is never quiet.

The rivals take turns in short rounds, each round in another order, and a ratio is taken within its round: what
disturbs one of them disturbs its neighbours as well. What is reported is the median over the rounds.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Mapping
from statistics import median

import msgspec
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

Operation = Callable[[], Awaitable[object]]

ROUNDS = 11
ROUND_S = 0.25

console = Console(stderr=True, highlight=False)


class Report(msgspec.Struct):
    """What a benchmark says: ratios of speeds (more is better, unless the name says otherwise), and plain figures."""

    ratios: dict[str, float] = {}
    figures: dict[str, float] = {}


class Comparison(msgspec.Struct):
    """Seconds per operation of every rival, round by round; on the wall and of this process's CPU."""

    title: str
    wall_s: dict[str, list[float]]
    cpu_s: dict[str, list[float]]

    def ratio(self, name: str, base: str) -> float:
        """The speed of ``name`` ÷ that of ``base``: 2.0 is twice as fast."""
        pairs = zip(self.wall_s[name], self.wall_s[base], strict=True)
        return round(median(other / own for own, other in pairs), 3)

    def show(self, base: str) -> None:
        """A table for people."""
        table = Table("rival", "µs an operation", "µs of CPU", f"÷ {base}", title=self.title, title_justify="left")
        for name, seconds in self.wall_s.items():
            wall, cpu = median(seconds) * 1e6, median(self.cpu_s[name]) * 1e6
            table.add_row(name, f"{wall:.1f}", f"{cpu:.1f}", f"{self.ratio(name, base):.2f}")
        console.print(table)


async def compare(
    title: str, rivals: Mapping[str, Operation], *, tasks: int = 1, rounds: int = ROUNDS, round_s: float = ROUND_S
) -> Comparison:
    """Let ``tasks`` tasks repeat each rival's operation for about ``round_s`` seconds, ``rounds`` times over."""
    counts = {name: await _calibrate(operation, tasks, round_s) for name, operation in rivals.items()}
    wall_s: dict[str, list[float]] = {name: [] for name in rivals}
    cpu_s: dict[str, list[float]] = {name: [] for name in rivals}
    names = list(rivals)
    with Progress(console=console, transient=True) as progress:
        for turn in progress.track(range(rounds), description=title):
            start = turn % len(names)
            for name in names[start:] + names[:start]:
                wall, cpu = await _time(rivals[name], tasks, counts[name])
                wall_s[name].append(wall)
                cpu_s[name].append(cpu)
    return Comparison(title, wall_s, cpu_s)


async def _calibrate(operation: Operation, tasks: int, round_s: float) -> int:
    """How many operations a task does in a round; the first ones, which warm up, do not count."""
    await _time(operation, tasks, 5)
    wall, _ = await _time(operation, tasks, 20)
    return max(5, round(round_s / wall / tasks))


async def _time(operation: Operation, tasks: int, count: int) -> tuple[float, float]:
    """Seconds per operation on the wall, and of CPU."""

    async def repeat() -> None:
        for _ in range(count):
            await operation()

    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    if tasks == 1:
        await repeat()
    else:
        await asyncio.gather(*(repeat() for _ in range(tasks)))
    done = tasks * count
    return (time.perf_counter() - wall) / done, (time.process_time() - cpu) / done
