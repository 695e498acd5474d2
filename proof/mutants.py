"""Faults to plant in daydo-quota: each is a mistake somebody could make, and one that loses or doubles a unit.

``MUTANTS`` are those that SQLite shows. It has one writer and no old snapshots, so what is wrong with a lock, or with
what a lock does not cover, only a server shows: ``SERVER_MUTANTS``, by the tests that should notice.

``old`` has to stand in its file exactly once. A mutant that no longer fits fails the gate: it moves with the code.
"""

from __future__ import annotations

from .gate import Mutant

MUTANTS = [
    # What is decided
    Mutant(
        "one unit more than there is can be held",
        "book.py",
        "        if amount > account.available:\n",
        "        if amount > account.available + 1:\n",
    ),
    Mutant(
        "of several accounts one is not asked whether it has enough",
        "planner.py",
        "            self.book.require(accounts[leg.account], leg.amount)\n",
        "            self.book.require(accounts[op.legs[0].account], op.legs[0].amount)\n",
    ),
    Mutant(
        "priority does not come before expiry",
        "book.py",
        'attrgetter("priority", "expires_at_us", "created_at_us", "id")',
        'attrgetter("expires_at_us", "priority", "created_at_us", "id")',
    ),
    Mutant(
        "a grant is used twice under the same key",
        "planner.py",
        "            return _grant_result(account, known, created=known.id == op.id)\n",
        "            pass\n",
    ),
    Mutant(
        "a key with another amount is taken for a repeat",
        "ops.py",
        "return self.account, self.amount, self.ttl_given_us\n",
        "return self.account, self.ttl_given_us\n",
    ),
    Mutant(
        "a hold can be confirmed a second time with another amount",
        "planner.py",
        "            if charge != row.final:\n",
        "            if charge < row.final:\n",
    ),
    Mutant(
        "a late confirm is free",
        "planner.py",
        "self.book.settle(row, charge, self.book.spend(account, charge))",
        "self.book.settle(row, charge, [])",
    ),
    Mutant(
        "a late confirm is charged although it was not allowed",
        "planner.py",
        """ or (row.phase == "expired" and op.late != "available"):""",
        """ or (row.phase == "expired" and op.late == "none"):""",
    ),
    Mutant(
        "a confirm keeps what it did not charge",
        "planner.py",
        "        returned, lost = self.book.give_back(account, row, self.now_us)\n        owed = self.book.settle",
        "        returned, lost = 0, 0\n        owed = self.book.settle",
    ),
    Mutant(
        "a cancel that comes first is forgotten",
        "planner.py",
        """            if row.phase == "tombstone" and row.account_id == account.id:\n""",
        """            if row.phase == "tombstone" and row.account_id != account.id:\n""",
    ),
    Mutant(
        "a cancel returns what was captured, too",
        "book.py",
        "        reserved = row.amount - row.captured\n        returned, lost = self.give_back",
        "        reserved = row.amount\n        returned, lost = self.give_back",
    ),
    Mutant(
        "all refunds of a charge together may exceed it",
        "planner.py",
        "        charged = row.captured - row.refunded\n",
        "        charged = row.captured\n",
    ),
    Mutant(
        "a refund goes to the first grant instead of the last",
        "book.py",
        "        for part in reversed(row.parts):\n",
        "        for part in row.parts:\n",
    ),
    Mutant(
        "expired units come back to life by being held",
        "book.py",
        """        lapsed = grant.phase == "lapsed" or grant.expires_at_us <= at_us\n""",
        """        lapsed = grant.phase == "gone"\n""",
    ),
    Mutant(
        "an extension can shorten a hold",
        "planner.py",
        "        longer = until_us > row.expires_at_us\n",
        "        longer = until_us != row.expires_at_us\n",
    ),
    Mutant(
        "a hold lasts a microsecond too long",
        "due.py",
        "    overdue = [row for row in opened if row.expires_at_us <= book.now_us]\n",
        "    overdue = [row for row in opened if row.expires_at_us < book.now_us]\n",
    ),
    Mutant(
        "an account looks too late at what is due",
        "book.py",
        "    if at_us < account.next_due_at_us:\n",
        "    if at_us != account.next_due_at_us:\n",
    ),
    Mutant(
        "a sweep that brings some of the holds lets grants expire before the others",
        "due.py",
        "    until_us = min(book.now_us, next_hold_us - 1)\n",
        "    until_us = book.now_us\n",
    ),
    Mutant(
        "a grant does not pay what is owed",
        "planner.py",
        "        self.book.add_grant(account, row, op.reason)\n        self.book.repay(account, self.now_us)\n",
        "        self.book.add_grant(account, row, op.reason)\n",
    ),
    Mutant(
        "an allowance is granted again whenever somebody asks",
        "due.py",
        "    book.touch(row).next_at_us = period.end_us if period.end_us < row.until_us else NEVER_US\n",
        "    book.touch(row).next_at_us = book.now_us\n    row.period = ''\n",
    ),
    # What is read and written
    Mutant(
        "what a grant has in holds is not written",
        "store.py",
        "for name, was, now in columns if was != now}",
        """for name, was, now in columns if was != now and name != "held"}""",
    ),
    Mutant(
        "what a hold took from which grant is not written",
        "store.py",
        "for name, was, now in columns if was != now}",
        """for name, was, now in columns if was != now and name != "parts"}""",
    ),
    Mutant(
        "grants that are pending or lapsed are not read",
        "store.py",
        """_UNFINISHED = "phase > 'closed'"\n""",
        """_UNFINISHED = "phase = 'live'"\n""",
    ),
    Mutant(
        "a hold is not overdue in its last microsecond, for the database",
        "store.py",
        """_OVERDUE = "account_id = ? AND phase = 'open' AND expires_at_us <= ?"\n""",
        """_OVERDUE = "account_id = ? AND phase = 'open' AND expires_at_us < ?"\n""",
    ),
    Mutant(
        "what one row becomes is written to another, too",
        "store.py",
        "if values.count(values[0]) == len(values)}",
        "if values.count(values[0]) > len(values) // 2}",
    ),
    Mutant(
        "what most rows change by is written to all",
        "store.py",
        "            args += [*members, own[column]]\n",
        "            args += [*members, most[0][column]]\n",
    ),
    Mutant(
        "a row that is not there any more is not missed",
        "store.py",
        "                changed = len(some) if checked else None\n",
        "                changed = None\n",
    ),
    Mutant(
        "what was charged of a hold is lost when it is read",
        "rows.py",
        "(amount if captured else 0) if used is None else used",
        "0 if used is None else used",
    ),
    Mutant(
        "a look that a writer overtakes is believed",
        "store.py",
        "    changed = {row.id for row in seen if row != known[row.id]}\n",
        "    changed = {row.id for row in seen if row.id not in known}\n",
    ),
    Mutant(
        "what another process has written since is not noticed",
        "free.py",
        "if stamps.get(sheet.account.id) == sheet.account.stamp}",
        "if sheet.account.id in stamps}",
    ),
    Mutant(
        "a write leaves no stamp of its own",
        "store.py",
        "            account.stamp = stamp\n",
        "            account.stamp = 1\n",
    ),
    Mutant(
        "what changes a hold alone leaves no stamp",
        "book.py",
        "if row.id in owners or row != self._before[row.id]]",
        "if row != self._before[row.id]]",
    ),
    Mutant(
        "a hold that is settled is remembered as open",
        "memory.py",
        """        if row.phase == "open":\n""",
        """        if row.phase != "tombstone":\n""",
    ),
    # Who is told what, and when
    Mutant(
        "callers are answered before the commit",
        "ledger.py",
        "        tx.after_commit(partial(tell, told))\n",
        "        tell(told)\n",
    ),
    Mutant(
        "what may have been committed is said not to be",
        "batcher.py",
        "        call.in_doubt = True\n",
        "        call.in_doubt = False\n",
    ),
    Mutant(
        "a duplicate's error gives back the original's hold",
        "blocks.py",
        "[work for work in works if work.hold.created]",
        "works",
    ),
    Mutant(
        "a call passes an earlier one on the same account",
        "batcher.py",
        "                others.update(call.accounts)  # What is asked about them later must not come before this.\n",
        "",
    ),
    Mutant(
        "an account is in two batches at a time",
        "batcher.py",
        " or self.is_free(call, behind=behind)\n",
        " or True\n",
    ),
    Mutant(
        "what is read is read although what comes before it is under way",
        "batcher.py",
        "        behind = behind and not read\n",
        "",
    ),
    Mutant(
        "calls that come again come in another order",
        "batcher.py",
        "        if late:\n",
        "        if False:\n",
    ),
    Mutant(
        "a call that cannot be written takes its batch along",
        "batcher.py",
        "                if len(calls) == 1:\n",
        "                [call.fail(error) for call in calls[1:]]\n                if len(calls):\n",
    ),
    # What is decided before anything is asked
    Mutant(
        "a draft is carried out although somebody else has written since",
        "draft.py",
        "COALESCE(SUM(stamp), 0) <> ?",
        "COALESCE(SUM(stamp), 0) < ? * 0",
    ),
    Mutant(
        "a draft is carried out although something was due meanwhile",
        "draft.py",
        "{self._now} NOT BETWEEN ? AND ?",
        "? + ? < 0",
    ),
    Mutant(
        "a repeat is refused for want of units, since nobody looked",
        "draft.py",
        "        if any([isinstance(outcome, QuotaError) for outcome in decided.outcomes]):",
        "        if False:",
    ),
    Mutant(
        "what is remembered is dated before what was written",
        "draft.py",
        "        return self._least_us\n",
        "        return now_us\n",
    ),
]

SERVER_MUTANTS: dict[tuple[str, ...], list[Mutant]] = {
    ("enlisted",): [
        Mutant(
            "a caller's old snapshot is believed",
            "enlisted.py",
            "        self.locking = tx.dialect.for_update\n",
            '        self.locking = ""\n',
        ),
        Mutant(
            "inside a caller's transaction an account is read without its lock",
            "enlisted.py",
            '{by_id} {self.locking}", [*ids, *args])',
            '{by_id}", [*ids, *args])',
        ),
        Mutant(
            "a key that was claimed since the caller's snapshot is looked for in that snapshot again",
            "ledger.py",
            "UniqueViolation:\n                decided = plan([op], *await store.read_enlisted(op, sure=True)",
            "UniqueViolation:\n                decided = plan([op], *await store.read_enlisted(op, sure=False)",
        ),
        Mutant(
            "a renewal's grant is made before the key that was asked for is claimed",
            "store.py",
            "made = (plan.new_holds, plan.new_amendments, plan.new_allowances, plan.new_grants)",
            "made = (plan.new_grants, plan.new_holds, plan.new_amendments, plan.new_allowances)",
        ),
        Mutant(
            "a repeat of what was done since the caller's snapshot is refused",
            "ledger.py",
            "            if isinstance(decided.outcomes[0], QuotaError) and store.may_be_old:\n",
            "            if False:\n",
        ),
        Mutant(
            "what failed half-way in a caller's transaction can be committed",
            "ledger.py",
            "            with whole(tx):\n                await self._make_so([op], decided, store)\n",
            "            if True:\n                await self._make_so([op], decided, store)\n",
        ),
        Mutant(
            "a caller's old snapshot shows which rows there are",
            "enlisted.py",
            "args) | await self._ids(self._db.query, table, where, args)",
            "args)",
        ),
    ],
    # An account that is read without its lock is not here: the key of the entries refuses the second writer, the batch
    # is written again, and all that can be seen of it is that it took longer.
    ("batcher", "races"): [
        Mutant(
            "one account that somebody has stalls all others",
            "store.py",
            'return f"{self.tx.dialect.for_update} {self.tx.dialect.skip_locked}"',
            "return self.tx.dialect.for_update",
        ),
    ],
    ("ledger",): [
        Mutant(
            "calls at once in one transaction are decided on the same books",
            "ledger.py",
            "        async with taking_turns(tx):\n",
            "        if True:\n",
        ),
    ],
    ("saga",): [
        Mutant(
            "a step is done again whenever its message comes",
            "saga.py",
            "    except UniqueViolation:\n        return False\n",
            "    except UniqueViolation:\n        return True\n",
        ),
    ],
}
