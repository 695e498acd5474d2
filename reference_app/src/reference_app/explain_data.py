"""A database as it looks after a year, made in seconds: rows in every table, many of them one user's.

The books of the quota accounts are right and the runs are in states they can be in, for the walk works on them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from daydo_db import Database, Tx, read_now_us
from daydo_kernel import new_id
from daydo_quota.rows import NEVER_US

from .accounts.config import CREDITS, TENANT

_HOUR_US = 3_600_000_000
_DAY_US = 24 * _HOUR_US
_YEAR_US = 365 * _DAY_US
_ROWS_AN_INSERT = 200
_DUE_ACCOUNTS = 20
_OPEN_HOLDS = 50
_STUCK = 3
# InnoDB estimates ranges at up to twice their size and never above half the table: a larger share hides its plans.
_WHALE_SHARE = 0.15
# What a sweeper has left, for the next one.
_UNSWEPT = 50
# Sessions live for a month, and keys are bounded: even the busiest person has no more of them.
_MOST_SESSIONS, _LIVE_KEYS, _DEAD_KEYS = 200, 10, 25
_REST_US, _LIFE_US = 7 * _DAY_US, 30 * _DAY_US
_ROLES_OF_A_TENANT = 10
# Free codes are counted by whoever fills the pool up, one worker now and then.
_POOL = 200
_CODE_SIGNS = "23456789ABCDEFGHJKMNPQRSTUVWXYZ"
FLOW, UNKNOWN_FLOW = "cutout/1", "retired/1"


class People(NamedTuple):
    """Whom the walk meets: ``whale`` has a large share of everything, ``due`` has credits whose time is over."""

    whale: str
    due: str
    others: tuple[str, ...]


class Generator:
    """Fills the tables of all packages; about ``rows`` rows in each that grows with use."""

    def __init__(self, tx: Tx, now_us: int, rows: int, seed: int) -> None:
        self._tx = tx
        self._now_us = now_us
        self._rows = rows
        self._random = random.Random(seed)  # noqa: S311 - made-up data
        self._subjects = [new_id("user") for _ in range(max(100, rows // 5))]

    async def fill(self) -> People:
        """All of it, in the one transaction."""
        await self._identities()
        await self._sessions()
        await self._roles()
        await self._keys()
        await self._profiles()
        await self._invites()
        await self._uploads()
        await self._books()
        await self._barriers()
        await self._workers()
        await self._runs()
        whale, *others = self._subjects
        return People(whale, others[0], tuple(others[1:]))

    def _owner(self) -> str:
        return self._subjects[0] if self._random.random() < _WHALE_SHARE else self._random.choice(self._subjects[1:])

    def _past_us(self) -> int:
        return self._now_us - self._random.randrange(_HOUR_US, _YEAR_US)

    async def _insert(self, table: str, rows: Sequence[dict[str, Any]]) -> None:
        for start in range(0, len(rows), _ROWS_AN_INSERT):
            some = rows[start : start + _ROWS_AN_INSERT]
            row = f"({', '.join('?' * len(some[0]))})"
            insert = f"INSERT INTO {table} ({', '.join(some[0])}) VALUES {', '.join([row] * len(some))}"  # noqa: S608
            await self._tx.execute(insert, [value for one in some for value in one.values()])

    # Auth: everybody has an address and a password, every other one WeChat, too. Of the feed, which is kept for some
    # hours, most is of a while ago, when many sessions were ended at once.

    async def _identities(self) -> None:
        identities, passwords = [], []
        for n, subject in enumerate(self._subjects):
            names = [("login", _email(n))] + ([("wechat:app", f"openid-{n}")] if n % 2 else [])
            for kind, login in names:
                made_us = self._past_us()
                identities.append(
                    {
                        "tenant": TENANT,
                        "kind": kind,
                        "login": login,
                        "subject": subject,
                        "created_at_us": made_us,
                        "verified_at_us": made_us if kind != "login" else 0,
                    }
                )
            passwords.append(
                {"tenant": TENANT, "subject": subject, "hashed": "$2b$04$", "changed_at_us": self._past_us()}
            )
        await self._insert("daydo_auth_identity", identities)
        await self._insert("daydo_auth_password", passwords)

    async def _sessions(self) -> None:
        whale, *others = self._subjects
        mine = min(_MOST_SESSIONS, self._rows // 5)
        owners = [whale] * mine + self._random.choices(others, k=self._rows - mine)
        await self._insert("daydo_auth_session", [self._session(n, owner) for n, owner in enumerate(owners)])
        changes = [self._change(new_id("ses"), self._random.randint(70, 115)) for _ in range(self._rows)]
        changes += [self._change(new_id("ses"), self._random.randint(1, 60)) for _ in range(self._rows // 20)]
        changes += [self._change(new_id("ses"), self._random.randint(125, 180)) for _ in range(_UNSWEPT)]
        await self._insert("daydo_auth_revocation", changes)

    def _session(self, n: int, owner: str) -> dict[str, Any]:
        age_us = self._random.randrange(_HOUR_US, _LIFE_US - _HOUR_US)
        if n % (self._rows // _UNSWEPT) == 0:
            age_us += _LIFE_US
        opened_us = self._now_us - age_us
        used_us = opened_us + self._random.randrange(min(age_us, _LIFE_US))
        revoked_us = self._random.choice((0, used_us + 1))
        return {
            "id": new_id("ses"),
            "tenant": TENANT,
            "subject": owner,
            "device": "phone",
            "secret_hash": bytes(32),
            "counter": 1,
            "created_at_us": opened_us,
            "proved_at_us": opened_us,
            "rotated_at_us": used_us,
            "refresh_by_us": used_us + _REST_US,
            "expires_at_us": opened_us + _LIFE_US,
            "revoked_at_us": revoked_us,
            "revoked_for": "logout" if revoked_us else "",
        }

    def _change(self, session_id: str, minutes: int) -> dict[str, Any]:
        at_us = self._now_us - minutes * 60_000_000
        return {"kind": "session", "tenant": TENANT, "name": session_id, "epoch": 0, "at_us": at_us}

    async def _roles(self) -> None:
        tenants = ["", TENANT, *(f"t{n}" for n in range(self._rows // 5 // _ROLES_OF_A_TENANT))]
        roles = [
            {
                "tenant": tenant,
                "name": f"{tenant}r{n}",
                "inherits": "",
                "permissions": "photos:read photos:write",
                "changed_at_us": self._past_us(),
            }
            for tenant in tenants
            for n in range(_ROLES_OF_A_TENANT)
        ]
        subjects = [
            {
                "tenant": TENANT,
                "subject": subject,
                "roles": "",
                "epoch": 0,
                "disabled_at_us": 0,
                "has_left": 0,
                "changed_at_us": self._past_us(),
            }
            for subject in self._subjects
        ]
        await self._insert("daydo_auth_role", roles)
        await self._insert("daydo_auth_role_table", [{"tenant": tenant, "epoch": 1} for tenant in tenants])
        await self._insert("daydo_auth_subject", subjects)

    async def _keys(self) -> None:
        whale, *others = self._subjects
        keys = [self._key(whale, dead=n < _DEAD_KEYS) for n in range(_DEAD_KEYS + _LIVE_KEYS)]
        keys += [self._key(self._random.choice(others), dead=n % 2 == 0) for n in range(self._rows // 2)]
        await self._insert("daydo_auth_api_key", keys)

    def _key(self, owner: str, *, dead: bool) -> dict[str, Any]:
        made_us = self._past_us()
        return {
            "id": new_id("dk"),
            "tenant": TENANT,
            "subject": owner,
            "kind": "bearer",
            "name": "script",
            "hashed": bytes(32),
            "scopes": "photos:read",
            "created_at_us": made_us,
            "expires_at_us": 0,
            "revoked_at_us": made_us + 1 if dead else 0,
            "used_at_us": made_us,
        }

    # The application: every other one has a phone, and most have only registered. Codes that were given away are mostly
    # used, many of them the whale's.

    async def _profiles(self) -> None:
        strangers = [new_id("user") for _ in range(self._rows - len(self._subjects))]
        profiles = [
            {
                "id": subject,
                "tenant": TENANT,
                "phone": f"138{n:08}" if n % 2 else None,
                "email": _email(n),
                "created_at_us": self._past_us(),
            }
            for n, subject in enumerate([*self._subjects, *strangers])
        ]
        await self._insert("app_profile", profiles)

    async def _invites(self) -> None:
        codes: set[str] = set()
        while len(codes) < self._rows + _POOL:
            codes.add("".join(self._random.choices(_CODE_SIGNS, k=8)))
        invites = [self._invite(code, free=n < _POOL, used=n % 20 > 0) for n, code in enumerate(sorted(codes))]
        self._random.shuffle(invites)
        await self._insert("app_invite", invites)
        await self._insert("app_invite_pool", [{"tenant": TENANT}])

    def _invite(self, code: str, *, free: bool, used: bool) -> dict[str, Any]:
        taken_us = self._past_us()
        return {
            "code": code,
            "tenant": TENANT,
            "owner": None if free else self._owner(),
            "op_key": None if free else code,
            "taken_at_us": 0 if free else taken_us,
            "claimed_by": None if free or not used else self._random.choice(self._subjects),
            "claimed_at_us": 0 if free or not used else taken_us + 1,
            "created_at_us": taken_us,
        }

    async def _uploads(self) -> None:
        uploads = [
            {
                "id": new_id("upload"),
                "tenant": TENANT,
                "subject": self._owner(),
                "media_type": "image/png",
                "width": 1,
                "height": 1,
                "size_bytes": 1,
                "created_at_us": self._past_us(),
            }
            for _ in range(self._rows)
        ]
        await self._insert("app_upload", uploads)

    # Quota: of every account a live grant, and closed ones for what was spent; of the whale some open holds.

    async def _books(self) -> None:
        spent = [0] * len(self._subjects)
        grants, holds = [], []
        for _ in range(self._rows):
            which = 0 if self._random.random() < _WHALE_SHARE else self._random.randrange(len(spent))
            spent[which] += 5
            grants.append(self._grant(which + 1, phase="closed", spent=5))
            holds.append(self._hold(which + 1, phase="confirmed", captured=5))
        for number in range(1, len(spent) + 1):
            lapses_us = self._now_us - _HOUR_US if 1 < number < 2 + _DUE_ACCOUNTS else NEVER_US
            grants.append(self._grant(number, phase="live", remaining=100, expires_at_us=lapses_us))
        purse = grants[self._rows]
        purse["remaining"], purse["held"] = 100 - _OPEN_HOLDS, _OPEN_HOLDS
        parts = msgspec.json.encode([(purse["id"], 1, 0)]).decode()
        for n in range(_OPEN_HOLDS):
            ends_us = self._now_us + (n + 1) * _HOUR_US
            holds.append(self._hold(1, phase="open", amount=1, parts=parts, expires_at_us=ends_us))
        entries = [self._entry(1, seq) for seq in range(1, self._rows + 1)]
        entries += [self._entry(number, 1) for number in range(2, len(spent) + 1)]
        await self._insert("daydo_quota_account", [self._account(n, spent[n]) for n in range(len(spent))])
        await self._insert("daydo_quota_grant", grants)
        await self._insert("daydo_quota_hold", holds)
        await self._insert("daydo_quota_entry", entries)

    def _account(self, n: int, spent: int) -> dict[str, Any]:
        held = 0 if n else _OPEN_HOLDS
        due_us = NEVER_US if n else self._now_us + _HOUR_US
        return {
            "id": n + 1,
            "tenant": TENANT,
            "subject": self._subjects[n],
            "unit": CREDITS,
            "available": 100 - held,
            "reserved": held,
            "spent": spent,
            "seq": 1 if n else self._rows,
            "next_due_at_us": self._now_us - _HOUR_US if 1 <= n <= _DUE_ACCOUNTS else due_us,
        }

    def _grant(
        self, account: int, *, phase: str, remaining: int = 0, spent: int = 0, expires_at_us: int = NEVER_US
    ) -> dict[str, Any]:
        grant_id, given_us = new_id("grant"), self._now_us - _YEAR_US
        return {
            "id": grant_id,
            "account_id": account,
            "tenant": TENANT,
            "op_key": grant_id,
            "fingerprint": "",
            "source": "topup",
            "priority": 50,
            "effective_at_us": given_us,
            "expires_at_us": expires_at_us,
            "notice_at_us": NEVER_US,
            "created_at_us": given_us,
            "phase": phase,
            "granted": remaining + spent,
            "remaining": remaining,
            "held": 0,
            "spent": spent,
            "expired": 0,
        }

    def _hold(
        self,
        account: int,
        *,
        phase: str,
        amount: int = 5,
        captured: int = 0,
        parts: str = "[]",
        expires_at_us: int | None = None,
    ) -> dict[str, Any]:
        hold_id, made_us = new_id("hold"), self._past_us()
        return {
            "id": hold_id,
            "account_id": account,
            "tenant": TENANT,
            "op_key": hold_id,
            "fingerprint": "",
            "amount": amount,
            "captured": captured,
            "phase": phase,
            "expires_at_us": made_us if expires_at_us is None else expires_at_us,
            "parts": parts,
            "created_at_us": made_us,
            "resolved_at_us": 0 if phase == "open" else made_us,
        }

    def _entry(self, account: int, seq: int) -> dict[str, Any]:
        numbers = ("amount", "available_change", "reserved_change", "spent_change", "expired_change")
        return {
            "account_id": account,
            "seq": seq,
            "op_id": new_id("hold"),
            "step": "confirm",
            "kind": "confirmed",
            "op_key": "",
            "reason": "",
            "at_us": self._now_us - _YEAR_US + seq * 1_000_000,
            **dict.fromkeys((*numbers, "available", "reserved", "spent", "expired"), 1),
            **dict.fromkeys(("debt_change", "debt"), 0),
        }

    async def _barriers(self) -> None:
        names = {"step": "ship", "action": "do", "made_by": "do"}
        asked = [{"saga": new_id("saga"), **names, "at_us": self._past_us()} for _ in range(self._rows)]
        await self._insert("daydo_quota_barrier", asked)

    # Runs: nearly all are over; a tenth waits for its next attempt; some run elsewhere; a few need the janitor.

    async def _workers(self) -> None:
        self._alive, self._dead = [[new_id("worker") for _ in range(_STUCK)] for _ in range(2)]
        lives = [(worker, self._now_us + _YEAR_US) for worker in self._alive]
        lives += [(worker, self._now_us - _HOUR_US) for worker in self._dead]
        workers = [
            {"id": worker, "flows": f'["{FLOW}"]', "started_at_us": self._now_us - _HOUR_US, "expires_at_us": until_us}
            for worker, until_us in lives
        ]
        await self._insert("daydo_pipeline_worker", workers)

    async def _runs(self) -> None:
        runs, steps, attempts, events = [], [], [], []
        seqs = dict.fromkeys(self._subjects, 0)
        for n in range(self._rows):
            run, step = self._run(n)
            runs.append(run)
            steps.append(step)
            if step["state"] in ("succeeded", "running"):
                attempts.append(self._attempt(step))
            for name in ("run.queued", "step.running", "run.running"):
                seqs[run["subject"]] += 1
                events.append(self._event(run, seqs[run["subject"]], name))
        owners = [{"tenant": TENANT, "subject": subject, "seq": seq} for subject, seq in seqs.items()]
        await self._insert("daydo_pipeline_run", runs)
        await self._insert("daydo_pipeline_step", steps)
        await self._insert("daydo_pipeline_attempt", attempts)
        await self._insert("daydo_pipeline_event", events)
        await self._insert("daydo_pipeline_owner", owners)

    def _run(self, n: int) -> tuple[dict[str, Any], dict[str, Any]]:
        state, flow, worker, wake_us, deadline_us = self._case(n)
        run_id, made_us = new_id("run"), self._past_us()
        over = state == "succeeded"
        run = {
            "id": run_id,
            "tenant": TENANT,
            "subject": self._owner(),
            "op_key": run_id,
            "fingerprint": "",
            "flow": flow.partition("/")[0],
            "version": 1,
            "def_hash": "",
            "state": "queued" if state == "ready" else state,
            "unit": "",
            "amount": 0,
            "inputs": '{"photo": ""}',
            "created_at_us": made_us,
            "deadline_us": deadline_us,
            "finished_at_us": made_us if over else None,
        }
        step = {
            "run_id": run_id,
            "n": 0,
            "name": "cutout",
            "provider": "local",
            "flow_key": flow,
            "state": state,
            "fence": 1,
            "worker_id": worker,
            "attempt": 1,
            "recoveries": 0,
            "deps_left": 0,
            "wake_at_us": wake_us,
            "progress": 1.0 if over else 0.0,
        }
        return run, step

    def _case(self, n: int) -> tuple[str, str, str | None, int, int]:
        """State, flow, worker, wake-up, deadline of the step of run ``n``."""
        later_us, long_ago_us = self._now_us + _YEAR_US, self._now_us - _YEAR_US
        if n < _STUCK:
            return "running", FLOW, self._dead[n], long_ago_us, later_us
        if n < 2 * _STUCK:
            return "ready", UNKNOWN_FLOW, None, long_ago_us, later_us
        if n < 3 * _STUCK:
            return "ready", FLOW, None, later_us, long_ago_us
        if n < 20 * _STUCK:
            return "running", FLOW, self._alive[n % _STUCK], long_ago_us, later_us
        if n < self._rows // 10:
            return "ready", FLOW, None, later_us, later_us
        return "succeeded", FLOW, None, long_ago_us, self._past_us()

    def _attempt(self, step: dict[str, Any]) -> dict[str, Any]:
        return {
            "run_id": step["run_id"],
            "n": 0,
            "fence": 1,
            "attempt": 1,
            "worker_id": step["worker_id"] or "",
            "provider": "local",
            "provider_key": "",
            "state": "ok" if step["state"] == "succeeded" else "intended",
            "started_at_us": self._now_us - _HOUR_US,
        }

    def _event(self, run: dict[str, Any], seq: int, name: str) -> dict[str, Any]:
        body = {"name": name, "run_id": run["id"], "flow": run["flow"], "state": "running", "progress": 0, "at_us": 0}
        return {
            "tenant": TENANT,
            "subject": run["subject"],
            "seq": seq,
            "run_id": run["id"],
            "name": name,
            "body": msgspec.json.encode(body).decode(),
            "at_us": run["created_at_us"],
        }


def _email(n: int) -> str:
    return f"u{n}@example.com"


async def fill(db: Database, *, rows: int, seed: int = 1) -> People:
    """Fill migrated, empty tables, and let the server look at them as it would have by then."""
    async with db.transaction() as tx:
        people = await Generator(tx, await read_now_us(tx, None), rows, seed).fill()
    for table in await tables(db) if db.dialect.name == "mysql" else ():
        await db.execute(f"ANALYZE TABLE {table}")
    return people


_TABLES = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name",
    "mysql": "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE() ORDER BY table_name",
}


async def tables(db: Database) -> list[str]:
    """The names of all tables."""
    return [name for (name,) in (await db.query(_TABLES[db.dialect.name])).rows]
