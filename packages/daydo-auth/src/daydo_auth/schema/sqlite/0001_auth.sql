-- Times are microseconds UTC by the database's clock, 0 is never. A session's secret and an API key are kept as hashes.
-- daydo_auth_revocation is the feed every worker follows: what tokens made before at_us are no longer good for.

CREATE TABLE daydo_auth_identity (
  tenant TEXT NOT NULL,
  kind TEXT NOT NULL,
  login TEXT NOT NULL,
  subject TEXT NOT NULL,
  created_at_us INTEGER NOT NULL,
  verified_at_us INTEGER NOT NULL,
  PRIMARY KEY (tenant, kind, login)
) WITHOUT ROWID;

CREATE INDEX daydo_auth_identity_subject ON daydo_auth_identity (tenant, subject);

CREATE TABLE daydo_auth_password (
  tenant TEXT NOT NULL,
  subject TEXT NOT NULL,
  hashed TEXT NOT NULL,
  changed_at_us INTEGER NOT NULL,
  PRIMARY KEY (tenant, subject)
) WITHOUT ROWID;

CREATE TABLE daydo_auth_subject (
  tenant TEXT NOT NULL,
  subject TEXT NOT NULL,
  roles TEXT NOT NULL,
  epoch INTEGER NOT NULL,
  disabled_at_us INTEGER NOT NULL,
  has_left INTEGER NOT NULL,
  changed_at_us INTEGER NOT NULL,
  PRIMARY KEY (tenant, subject)
) WITHOUT ROWID;

CREATE TABLE daydo_auth_role (
  tenant TEXT NOT NULL,
  name TEXT NOT NULL,
  inherits TEXT NOT NULL,
  permissions TEXT NOT NULL,
  changed_at_us INTEGER NOT NULL,
  PRIMARY KEY (tenant, name)
) WITHOUT ROWID;

CREATE TABLE daydo_auth_role_table (
  tenant TEXT NOT NULL,
  epoch INTEGER NOT NULL,
  PRIMARY KEY (tenant)
) WITHOUT ROWID;

CREATE TABLE daydo_auth_session (
  id TEXT NOT NULL,
  tenant TEXT NOT NULL,
  subject TEXT NOT NULL,
  device TEXT NOT NULL,
  secret_hash BLOB NOT NULL,
  counter INTEGER NOT NULL,
  created_at_us INTEGER NOT NULL,
  proved_at_us INTEGER NOT NULL,
  rotated_at_us INTEGER NOT NULL,
  refresh_by_us INTEGER NOT NULL,
  expires_at_us INTEGER NOT NULL,
  revoked_at_us INTEGER NOT NULL,
  revoked_for TEXT NOT NULL,
  PRIMARY KEY (id)
) WITHOUT ROWID;

CREATE INDEX daydo_auth_session_subject ON daydo_auth_session (tenant, subject);

CREATE INDEX daydo_auth_session_expiry ON daydo_auth_session (expires_at_us);

CREATE TABLE daydo_auth_revocation (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  kind TEXT NOT NULL,
  tenant TEXT NOT NULL,
  name TEXT NOT NULL,
  epoch INTEGER NOT NULL,
  at_us INTEGER NOT NULL
);

CREATE INDEX daydo_auth_revocation_time ON daydo_auth_revocation (at_us);

CREATE TABLE daydo_auth_api_key (
  id TEXT NOT NULL,
  tenant TEXT NOT NULL,
  subject TEXT NOT NULL,
  kind TEXT NOT NULL,
  name TEXT NOT NULL,
  hashed BLOB NOT NULL,
  scopes TEXT NOT NULL,
  created_at_us INTEGER NOT NULL,
  expires_at_us INTEGER NOT NULL,
  revoked_at_us INTEGER NOT NULL,
  used_at_us INTEGER NOT NULL,
  PRIMARY KEY (id)
) WITHOUT ROWID;

CREATE INDEX daydo_auth_api_key_subject ON daydo_auth_api_key (tenant, subject);
