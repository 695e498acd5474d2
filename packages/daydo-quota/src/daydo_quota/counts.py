"""What the ledger counts: one class that owns the cells and is told what happened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from daydo_kernel import Counter, Gauge, Metrics

from .errors import InsufficientQuota, QuotaError
from .model import Allowance, EntryKind, Grant, Hold
from .ops import (
    Allow,
    Cancel,
    Capture,
    CatchUp,
    Charge,
    Confirm,
    Disallow,
    Extend,
    GrantUnits,
    Op,
    Refund,
    Reserve,
    ReserveAll,
)
from .rows import AccountRow, EntryRow, Plan

Cells = dict[str, Counter]

_MAX_UNITS = 100
_MOVES = ("granted", "held", "spent", "owed", "repaid", "returned", "refunded", "expired")
_ALLOWED = ("allowed", "disallowed", "replayed", "refused")
_ANSWERS = (Hold, Grant, Allowance, list)
_OPERATIONS: dict[type[Op], str] = {
    GrantUnits: "grant",
    Allow: "allow",
    Disallow: "disallow",
    Reserve: "reserve",
    ReserveAll: "reserve_all",
    Charge: "charge",
    Capture: "capture",
    Confirm: "confirm",
    Cancel: "cancel",
    Extend: "extend",
    Refund: "refund",
    CatchUp: "catch_up",
}


class Counts:
    """The cells of a ledger, by what is told: an answer's time, a refusal, what a transaction wrote, the upkeep."""

    def __init__(self) -> None:
        self.metrics = Metrics("daydo_quota")
        self._grants = self._asks("grants_total", "Grants asked for.", "granted", "replayed", "refused")
        self._holds = self._asks("holds_total", "Holds asked for.", "held", "replayed", "insufficient", "refused")
        ends = ("confirmed", "cancelled", "expired", "tombstone", "replayed", "refused")
        self._settlements = self._asks("settlements_total", "Holds ended, or asked to.", *ends)
        self._allowances = self._asks("allowances_total", "Allowances asked for or ended.", *_ALLOWED)
        self._charges = self._asks(
            "charges_total", "Charges without a hold asked for.", "charged", "replayed", "insufficient", "refused"
        )
        self._captures = self._asks("captures_total", "Captures asked for.", "captured", "replayed", "refused")
        self._extensions = self._asks(
            "extensions_total", "Longer time-outs asked for.", "extended", "replayed", "refused"
        )
        self._refunds = self._asks("refunds_total", "Refunds asked for.", "refunded", "replayed", "refused")
        self._units = {
            name: self.metrics.counter(f"{name}_units_total", f"Units {name}.", ("unit",), max_cells=_MAX_UNITS)
            for name in _MOVES
        }
        # By kind of entry: its cell, and what its amount counts as.
        self._entries: dict[EntryKind, tuple[Counter, str]] = {
            "granted": (self._grants["granted"], "granted"),
            "held": (self._holds["held"], "held"),
            "charged": (self._charges["charged"], "spent"),
            "captured": (self._captures["captured"], "spent"),
            "refunded": (self._refunds["refunded"], "refunded"),
        }
        self._ends: dict[EntryKind, Counter] = {
            "confirmed": self._settlements["confirmed"],
            "cancelled": self._settlements["cancelled"],
            "hold_expired": self._settlements["expired"],
        }
        # What leaves no entry.
        self._silent: dict[type[Op], Counter] = {
            Extend: self._extensions["extended"],
            Allow: self._allowances["allowed"],
            Disallow: self._allowances["disallowed"],
        }
        self._batches = self._asks("batches_total", "Batches by how they were decided.", "drafted", "overtaken", "read")
        seconds = self.metrics.histogram("operation_seconds", "From call to answer.", ("operation",))
        self._seconds = {kind: seconds.cell(name) for kind, name in _OPERATIONS.items()}
        self._upkeep_seconds = {name: seconds.cell(name) for name in ("sweep", "audit", "roll_up")}
        self._expiry_lag = self._worst("expiry_lag_seconds", "How long the most overdue account has waited.")
        self._stuck_hold = self._worst("stuck_hold_seconds", "How long the oldest hold is open beyond its time.")
        self._audit_age = self._worst("audit_age_seconds", "Since the background audit last came to an end.")
        self._disagree = self._worst("books_disagree", "1 where the last background audit found a disagreement.")
        self._audits = self._asks("audits_total", "Background audits that came to an end.", "agreed", "disagreed")
        audited = self.metrics.counter("audited_total", "Looked at by the background audit.", ("what",))
        self._audited_accounts, self._audited_entries = audited.cell("accounts"), audited.cell("entries")
        self._rolled_up = self.metrics.counter("rolled_up_entries_total", "Old entries that a roll-up removed.").cell()

    def answered(self, op: Op, seconds: float) -> None:
        """However it was answered."""
        self._seconds[type(op)].observe(seconds)

    def refused(self, op: Op, refusal: QuotaError) -> None:
        cells = self._asked(op)
        lacks = isinstance(refusal, InsufficientQuota) and "insufficient" in cells
        cells["insufficient" if lacks else "refused"].inc()

    def committed(self, ops: Sequence[Op], done: Plan, accounts: Mapping[int, AccountRow]) -> None:
        """``done`` has been written; ``accounts`` are those of its entries, by id."""
        for entry in done.entries:
            self._entered(accounts[entry.account_id].unit, entry)
        for op, outcome in zip(ops, done.outcomes, strict=True):
            if isinstance(outcome, _ANSWERS):
                self._done(op, outcome)

    def batch(self, outcome: Literal["drafted", "overtaken", "read"]) -> None:
        """Drafted on what is remembered, drafted to no avail, or decided on what was read."""
        self._batches[outcome].inc()

    def upkeep_took(self, what: Literal["sweep", "audit", "roll_up"], seconds: float) -> None:
        """A turn of the upkeep."""
        self._upkeep_seconds[what].observe(seconds)

    def audited(self, accounts: int, entries: int, *, ended: bool, agrees: bool) -> None:
        """A step of the background audit; ``ended`` its walk, and then the books agree or not."""
        self._audited_accounts.inc(accounts)
        self._audited_entries.inc(entries)
        if ended:
            self._audits["agreed" if agrees else "disagreed"].inc()

    def rolled_up(self, entries: int) -> None:
        self._rolled_up.inc(entries)

    def condition_is(self, expiry_lag_s: float, stuck_hold_s: float, audit_age_s: float, disagree: bool) -> None:
        """How the books are, whichever process looks."""
        self._expiry_lag.set(expiry_lag_s)
        self._stuck_hold.set(stuck_hold_s)
        self._audit_age.set(audit_age_s)
        self._disagree.set(float(disagree))

    def _worst(self, name: str, what: str) -> Gauge:
        return self.metrics.gauge(name, what, merge="max").cell()

    def _asks(self, name: str, what: str, *outcomes: str) -> Cells:
        family = self.metrics.counter(name, what, ("outcome",))
        return {outcome: family.cell(outcome) for outcome in outcomes}

    def _asked(self, op: Op) -> Cells:
        match op:
            case GrantUnits():
                return self._grants
            case Reserve() | ReserveAll():
                return self._holds
            case Allow() | Disallow():
                return self._allowances
            case Charge():
                return self._charges
            case Capture():
                return self._captures
            case Extend():
                return self._extensions
            case Refund():
                return self._refunds
        return self._settlements

    def _done(self, op: Op, outcome: Grant | Hold | Allowance | list[Hold]) -> None:
        if isinstance(outcome, list):
            # One call: replayed as a whole or not at all.
            outcome = outcome[0]
        if not outcome.created:
            self._asked(op)["replayed"].inc()
        elif type(op) in self._silent:
            self._silent[type(op)].inc()
        elif isinstance(outcome, Hold) and outcome.phase == "tombstone":
            self._settlements["tombstone"].inc()

    def _entered(self, unit: str, entry: EntryRow) -> None:
        if entry.kind in self._entries:
            count, units = self._entries[entry.kind]
            count.inc()
            self._units[units].cell(unit).inc(entry.amount)
        elif entry.kind == "repaid":
            self._units["repaid"].cell(unit).inc(entry.amount)
        elif entry.kind in self._ends:
            self._ends[entry.kind].inc()
            self._units["spent"].cell(unit).inc(entry.spent_change)
            # Negative where a confirm took more than it held.
            self._units["returned"].cell(unit).inc(max(0, entry.available_change))
        if entry.debt_change > 0:
            self._units["owed"].cell(unit).inc(entry.debt_change)
        if entry.expired_change:
            self._units["expired"].cell(unit).inc(entry.expired_change)
