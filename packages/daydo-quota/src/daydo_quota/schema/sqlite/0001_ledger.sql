-- Times are microseconds UTC by the database's clock, 9007199254740991 stands for never. Amounts are whole units.

CREATE TABLE daydo_quota_account (
  id INTEGER PRIMARY KEY,
  tenant TEXT NOT NULL,
  subject TEXT NOT NULL,
  unit TEXT NOT NULL,
  pending INTEGER NOT NULL DEFAULT 0 CHECK (pending >= 0),
  available INTEGER NOT NULL DEFAULT 0 CHECK (available >= 0),
  reserved INTEGER NOT NULL DEFAULT 0 CHECK (reserved >= 0),
  spent INTEGER NOT NULL DEFAULT 0 CHECK (spent >= 0),
  expired INTEGER NOT NULL DEFAULT 0 CHECK (expired >= 0),
  debt INTEGER NOT NULL DEFAULT 0 CHECK (debt >= 0),
  seq INTEGER NOT NULL DEFAULT 0,
  next_due_at_us INTEGER NOT NULL DEFAULT 9007199254740991,
  renews_at_us INTEGER NOT NULL DEFAULT 9007199254740991,
  stamp INTEGER NOT NULL DEFAULT 0,
  UNIQUE (tenant, subject, unit)
);

CREATE INDEX daydo_quota_account_due ON daydo_quota_account (next_due_at_us);

CREATE TABLE daydo_quota_grant (
  id TEXT NOT NULL PRIMARY KEY,
  account_id INTEGER NOT NULL,
  tenant TEXT NOT NULL,
  op_key TEXT NOT NULL,
  fingerprint TEXT NOT NULL,
  source TEXT NOT NULL,
  priority INTEGER NOT NULL,
  effective_at_us INTEGER NOT NULL,
  expires_at_us INTEGER NOT NULL,
  notice_at_us INTEGER NOT NULL,
  created_at_us INTEGER NOT NULL,
  phase TEXT NOT NULL,
  granted INTEGER NOT NULL,
  remaining INTEGER NOT NULL CHECK (remaining >= 0),
  held INTEGER NOT NULL CHECK (held >= 0),
  spent INTEGER NOT NULL CHECK (spent >= 0),
  expired INTEGER NOT NULL CHECK (expired >= 0),
  UNIQUE (tenant, op_key),
  CHECK (granted = remaining + held + spent + expired)
) WITHOUT ROWID;

CREATE INDEX daydo_quota_grant_burn ON daydo_quota_grant (account_id, phase, priority, expires_at_us, id);

CREATE TABLE daydo_quota_allowance (
  id TEXT NOT NULL PRIMARY KEY,
  account_id INTEGER NOT NULL,
  tenant TEXT NOT NULL,
  op_key TEXT NOT NULL,
  fingerprint TEXT NOT NULL,
  amount INTEGER NOT NULL CHECK (amount > 0),
  every TEXT NOT NULL,
  zone TEXT NOT NULL,
  anchor TEXT NOT NULL,
  source TEXT NOT NULL,
  priority INTEGER NOT NULL,
  starts_at_us INTEGER NOT NULL,
  until_us INTEGER NOT NULL,
  next_at_us INTEGER NOT NULL,
  period TEXT NOT NULL,
  reason TEXT NOT NULL,
  created_at_us INTEGER NOT NULL,
  UNIQUE (tenant, op_key)
) WITHOUT ROWID;

CREATE INDEX daydo_quota_allowance_next ON daydo_quota_allowance (account_id, next_at_us);

CREATE TABLE daydo_quota_hold (
  id TEXT NOT NULL PRIMARY KEY,
  account_id INTEGER NOT NULL,
  tenant TEXT NOT NULL,
  op_key TEXT NOT NULL,
  leg INTEGER NOT NULL DEFAULT 0,
  fingerprint TEXT NOT NULL,
  amount INTEGER NOT NULL CHECK (amount >= 0),
  captured INTEGER NOT NULL DEFAULT 0 CHECK (captured >= 0),
  final INTEGER NOT NULL DEFAULT 0 CHECK (final >= 0),
  refunded INTEGER NOT NULL DEFAULT 0 CHECK (refunded >= 0),
  phase TEXT NOT NULL,
  expires_at_us INTEGER NOT NULL,
  parts TEXT NOT NULL,
  created_at_us INTEGER NOT NULL,
  resolved_at_us INTEGER NOT NULL,
  UNIQUE (tenant, op_key, leg),
  CHECK (refunded <= captured)
) WITHOUT ROWID;

CREATE INDEX daydo_quota_hold_due ON daydo_quota_hold (account_id, phase, expires_at_us);

CREATE INDEX daydo_quota_hold_account ON daydo_quota_hold (account_id, id);

CREATE TABLE daydo_quota_amendment (
  id TEXT NOT NULL PRIMARY KEY,
  account_id INTEGER NOT NULL,
  tenant TEXT NOT NULL,
  kind TEXT NOT NULL,
  op_key TEXT NOT NULL,
  fingerprint TEXT NOT NULL,
  hold_id TEXT NOT NULL,
  amount INTEGER NOT NULL CHECK (amount > 0),
  created_at_us INTEGER NOT NULL,
  UNIQUE (tenant, kind, op_key)
) WITHOUT ROWID;

CREATE INDEX daydo_quota_amendment_hold ON daydo_quota_amendment (hold_id);

CREATE TABLE daydo_quota_entry (
  account_id INTEGER NOT NULL,
  seq INTEGER NOT NULL,
  op_id TEXT NOT NULL,
  step TEXT NOT NULL,
  kind TEXT NOT NULL,
  op_key TEXT NOT NULL,
  hold_key TEXT NOT NULL DEFAULT '',
  reason TEXT NOT NULL DEFAULT '',
  at_us INTEGER NOT NULL,
  amount INTEGER NOT NULL,
  available_change INTEGER NOT NULL DEFAULT 0,
  reserved_change INTEGER NOT NULL DEFAULT 0,
  spent_change INTEGER NOT NULL DEFAULT 0,
  expired_change INTEGER NOT NULL DEFAULT 0,
  debt_change INTEGER NOT NULL DEFAULT 0,
  available INTEGER NOT NULL DEFAULT 0,
  reserved INTEGER NOT NULL DEFAULT 0,
  spent INTEGER NOT NULL DEFAULT 0,
  expired INTEGER NOT NULL DEFAULT 0,
  debt INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (account_id, seq),
  UNIQUE (op_id, step)
) WITHOUT ROWID;

-- What the steps of sagas have done: see saga.py. A 'do' that was made by an 'undo' never happened, and never will.
CREATE TABLE daydo_quota_barrier (
  saga TEXT NOT NULL,
  step TEXT NOT NULL,
  action TEXT NOT NULL,
  made_by TEXT NOT NULL,
  at_us INTEGER NOT NULL,
  PRIMARY KEY (saga, step, action)
) WITHOUT ROWID;

CREATE INDEX daydo_quota_barrier_at ON daydo_quota_barrier (at_us);

-- Work that all processes share, a row each: see upkeep.py. 'state' is JSON: how far it is, and what came of it.
CREATE TABLE daydo_quota_upkeep (
  name TEXT NOT NULL PRIMARY KEY,
  due_at_us INTEGER NOT NULL,
  state TEXT NOT NULL
) WITHOUT ROWID;

INSERT INTO daydo_quota_upkeep (name, due_at_us, state) VALUES ('audit', 0, '{}'), ('retention', 0, '{}');
