"""What a cache counts, bound to a space once."""

from __future__ import annotations

from daydo_kernel import Metrics

READS = ("local", "redis", "stale", "loaded", "absent", "failed", "timeout")
LOADS = ("ok", "absent", "failed", "timeout")
FILLS = ("stored", "refused", "too_large", "not_stored")
INVALIDATIONS = ("done", "deferred", "delivered")
LOCKS = ("taken", "busy", "lost")


class Counts:
    """The families of one cache."""

    def __init__(self, metrics: Metrics) -> None:
        space = ("space",)
        self._reads = metrics.counter(
            "reads_total", "Values asked for, by where they came from.", labels=("space", "outcome")
        )
        self._loads = metrics.counter("loads_total", "Loads, by how they ended.", labels=("space", "outcome"))
        self._fills = metrics.counter(
            "fills_total", "Loaded values, by what became of them in Redis.", labels=("space", "outcome")
        )
        self._invalidations = metrics.counter(
            "invalidations_total", "Invalidations; deferred: Redis was away.", labels=("space", "outcome")
        )
        self.load_seconds = metrics.histogram("load_seconds", "Time of one load.", labels=space)
        self.entries = metrics.gauge("local_entries", "Values in memory.", labels=space)
        self.bytes = metrics.gauge("local_bytes", "Their size, roughly.", labels=space)
        self.evicted = metrics.counter("local_evicted_total", "Values put out of memory for others.", labels=space)
        locks = metrics.counter("locks_total", "Locks, by how asking for them ended.", labels=("outcome",))
        self.locks = {outcome: locks.cell(outcome) for outcome in LOCKS}
        self.gaps = metrics.counter("news_gaps_total", "Times memory was cleared because news were missing.").cell()

        tags = metrics.counter("tag_invalidations_total", "The same of tags.", labels=("outcome",))
        self.tags = {outcome: tags.cell(outcome) for outcome in INVALIDATIONS}

    def of(self, space: str) -> SpaceCounts:
        return SpaceCounts(self, space)


class SpaceCounts:
    """The cells of one space."""

    def __init__(self, counts: Counts, space: str) -> None:
        self.reads = {outcome: counts._reads.cell(space, outcome) for outcome in READS}
        self.loads = {outcome: counts._loads.cell(space, outcome) for outcome in LOADS}
        self.fills = {outcome: counts._fills.cell(space, outcome) for outcome in FILLS}
        self.invalidations = {outcome: counts._invalidations.cell(space, outcome) for outcome in INVALIDATIONS}
        self.load_seconds = counts.load_seconds.cell(space)
        self.entries = counts.entries.cell(space)
        self.bytes = counts.bytes.cell(space)
        self.evicted = counts.evicted.cell(space)
