-- Times are microseconds UTC by the database's clock; revoked_at_us 0 stands for not revoked.

CREATE TABLE daydo_auth_identity (
  tenant TEXT NOT NULL,
  login TEXT NOT NULL,
  subject TEXT NOT NULL,
  created_at_us INTEGER NOT NULL,
  PRIMARY KEY (tenant, login)
) WITHOUT ROWID;

CREATE INDEX daydo_auth_identity_subject ON daydo_auth_identity (tenant, subject);

CREATE TABLE daydo_auth_password (
  tenant TEXT NOT NULL,
  subject TEXT NOT NULL,
  hashed TEXT NOT NULL,
  changed_at_us INTEGER NOT NULL,
  PRIMARY KEY (tenant, subject)
) WITHOUT ROWID;

CREATE TABLE daydo_auth_session (
  id TEXT NOT NULL PRIMARY KEY,
  tenant TEXT NOT NULL,
  subject TEXT NOT NULL,
  device TEXT NOT NULL,
  salt BLOB NOT NULL,
  counter INTEGER NOT NULL,
  created_at_us INTEGER NOT NULL,
  rotated_at_us INTEGER NOT NULL,
  refresh_by_us INTEGER NOT NULL,
  expires_at_us INTEGER NOT NULL,
  revoked_at_us INTEGER NOT NULL,
  revoked_for TEXT NOT NULL
) WITHOUT ROWID;

CREATE INDEX daydo_auth_session_subject ON daydo_auth_session (tenant, subject);
CREATE INDEX daydo_auth_session_revoked ON daydo_auth_session (revoked_at_us);
