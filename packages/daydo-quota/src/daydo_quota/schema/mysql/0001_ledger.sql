-- Times are microseconds UTC by the database's clock, 9007199254740991 stands for never. Amounts are whole units.

CREATE TABLE daydo_quota_account (
  id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
  tenant VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  subject VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  unit VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  pending BIGINT NOT NULL DEFAULT 0 CHECK (pending >= 0),
  available BIGINT NOT NULL DEFAULT 0 CHECK (available >= 0),
  reserved BIGINT NOT NULL DEFAULT 0 CHECK (reserved >= 0),
  spent BIGINT NOT NULL DEFAULT 0 CHECK (spent >= 0),
  expired BIGINT NOT NULL DEFAULT 0 CHECK (expired >= 0),
  debt BIGINT NOT NULL DEFAULT 0 CHECK (debt >= 0),
  seq BIGINT NOT NULL DEFAULT 0,
  next_due_at_us BIGINT NOT NULL DEFAULT 9007199254740991,
  renews_at_us BIGINT NOT NULL DEFAULT 9007199254740991,
  stamp BIGINT NOT NULL DEFAULT 0,
  UNIQUE KEY daydo_quota_account_owner (tenant, subject, unit),
  KEY daydo_quota_account_due (next_due_at_us)
) ENGINE=InnoDB;

CREATE TABLE daydo_quota_grant (
  id VARCHAR(48) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
  account_id BIGINT NOT NULL,
  tenant VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  op_key VARCHAR(200) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  fingerprint VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  source VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  priority SMALLINT NOT NULL,
  effective_at_us BIGINT NOT NULL,
  expires_at_us BIGINT NOT NULL,
  notice_at_us BIGINT NOT NULL,
  created_at_us BIGINT NOT NULL,
  phase VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  granted BIGINT NOT NULL,
  remaining BIGINT NOT NULL CHECK (remaining >= 0),
  held BIGINT NOT NULL CHECK (held >= 0),
  spent BIGINT NOT NULL CHECK (spent >= 0),
  expired BIGINT NOT NULL CHECK (expired >= 0),
  UNIQUE KEY daydo_quota_grant_op (tenant, op_key),
  KEY daydo_quota_grant_burn (account_id, phase, priority, expires_at_us, id),
  CHECK (granted = remaining + held + spent + expired)
) ENGINE=InnoDB;

CREATE TABLE daydo_quota_allowance (
  id VARCHAR(48) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
  account_id BIGINT NOT NULL,
  tenant VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  op_key VARCHAR(200) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  fingerprint VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  amount BIGINT NOT NULL CHECK (amount > 0),
  every VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  zone VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  anchor VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  source VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  priority SMALLINT NOT NULL,
  starts_at_us BIGINT NOT NULL,
  until_us BIGINT NOT NULL,
  next_at_us BIGINT NOT NULL,
  period VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  reason VARCHAR(200) CHARACTER SET utf8mb4 NOT NULL,
  created_at_us BIGINT NOT NULL,
  UNIQUE KEY daydo_quota_allowance_op (tenant, op_key),
  KEY daydo_quota_allowance_next (account_id, next_at_us)
) ENGINE=InnoDB;

CREATE TABLE daydo_quota_hold (
  id VARCHAR(48) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
  account_id BIGINT NOT NULL,
  tenant VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  op_key VARCHAR(200) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  leg BIGINT NOT NULL DEFAULT 0,
  fingerprint VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  amount BIGINT NOT NULL CHECK (amount >= 0),
  captured BIGINT NOT NULL DEFAULT 0 CHECK (captured >= 0),
  final BIGINT NOT NULL DEFAULT 0 CHECK (final >= 0),
  refunded BIGINT NOT NULL DEFAULT 0 CHECK (refunded >= 0),
  phase VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  expires_at_us BIGINT NOT NULL,
  parts MEDIUMTEXT CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  created_at_us BIGINT NOT NULL,
  resolved_at_us BIGINT NOT NULL,
  UNIQUE KEY daydo_quota_hold_op (tenant, op_key, leg),
  KEY daydo_quota_hold_due (account_id, phase, expires_at_us),
  KEY daydo_quota_hold_account (account_id, id),
  CHECK (refunded <= captured)
) ENGINE=InnoDB;

CREATE TABLE daydo_quota_amendment (
  id VARCHAR(48) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
  account_id BIGINT NOT NULL,
  tenant VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  kind VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  op_key VARCHAR(200) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  fingerprint VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  hold_id VARCHAR(48) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  amount BIGINT NOT NULL CHECK (amount > 0),
  created_at_us BIGINT NOT NULL,
  UNIQUE KEY daydo_quota_amendment_op (tenant, kind, op_key),
  KEY daydo_quota_amendment_hold (hold_id)
) ENGINE=InnoDB;

CREATE TABLE daydo_quota_entry (
  account_id BIGINT NOT NULL,
  seq BIGINT NOT NULL,
  op_id VARCHAR(48) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  step VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  kind VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  op_key VARCHAR(200) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  hold_key VARCHAR(200) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT '',
  reason VARCHAR(200) CHARACTER SET utf8mb4 NOT NULL DEFAULT '',
  at_us BIGINT NOT NULL,
  amount BIGINT NOT NULL,
  available_change BIGINT NOT NULL DEFAULT 0,
  reserved_change BIGINT NOT NULL DEFAULT 0,
  spent_change BIGINT NOT NULL DEFAULT 0,
  expired_change BIGINT NOT NULL DEFAULT 0,
  debt_change BIGINT NOT NULL DEFAULT 0,
  available BIGINT NOT NULL DEFAULT 0,
  reserved BIGINT NOT NULL DEFAULT 0,
  spent BIGINT NOT NULL DEFAULT 0,
  expired BIGINT NOT NULL DEFAULT 0,
  debt BIGINT NOT NULL DEFAULT 0,
  PRIMARY KEY (account_id, seq),
  UNIQUE KEY daydo_quota_entry_op (op_id, step)
) ENGINE=InnoDB;

-- What the steps of sagas have done: see saga.py. A 'do' that was made by an 'undo' never happened, and never will.
CREATE TABLE daydo_quota_barrier (
  saga VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  step VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  action VARCHAR(8) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  made_by VARCHAR(8) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  at_us BIGINT NOT NULL,
  PRIMARY KEY (saga, step, action),
  KEY daydo_quota_barrier_at (at_us)
) ENGINE=InnoDB;

-- Work that all processes share, a row each: see upkeep.py. 'state' is JSON: how far it is, and what came of it.
CREATE TABLE daydo_quota_upkeep (
  name VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
  due_at_us BIGINT NOT NULL,
  state TEXT CHARACTER SET ascii COLLATE ascii_bin NOT NULL
) ENGINE=InnoDB;

INSERT INTO daydo_quota_upkeep (name, due_at_us, state) VALUES ('audit', 0, '{}'), ('retention', 0, '{}');
