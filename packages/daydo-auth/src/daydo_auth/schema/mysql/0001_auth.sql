-- Times are microseconds UTC by the database's clock, 0 is never. A session's secret and an API key are kept as hashes.
-- daydo_auth_revocation is the feed every worker follows: what tokens made before at_us are no longer good for.

CREATE TABLE daydo_auth_identity (
  tenant VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  kind VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  login VARCHAR(254) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  subject VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  created_at_us BIGINT NOT NULL,
  verified_at_us BIGINT NOT NULL,
  PRIMARY KEY (tenant, kind, login),
  KEY daydo_auth_identity_subject (tenant, subject)
) ENGINE=InnoDB;

CREATE TABLE daydo_auth_password (
  tenant VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  subject VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  hashed VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  changed_at_us BIGINT NOT NULL,
  PRIMARY KEY (tenant, subject)
) ENGINE=InnoDB;

CREATE TABLE daydo_auth_subject (
  tenant VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  subject VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  roles VARCHAR(1024) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  epoch BIGINT NOT NULL,
  disabled_at_us BIGINT NOT NULL,
  has_left TINYINT NOT NULL,
  changed_at_us BIGINT NOT NULL,
  PRIMARY KEY (tenant, subject)
) ENGINE=InnoDB;

CREATE TABLE daydo_auth_role (
  tenant VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  name VARCHAR(48) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  inherits VARCHAR(1024) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  permissions TEXT CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  changed_at_us BIGINT NOT NULL,
  PRIMARY KEY (tenant, name)
) ENGINE=InnoDB;

CREATE TABLE daydo_auth_role_table (
  tenant VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  epoch BIGINT NOT NULL,
  PRIMARY KEY (tenant)
) ENGINE=InnoDB;

CREATE TABLE daydo_auth_session (
  id VARCHAR(48) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  tenant VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  subject VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  device VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  secret_hash VARBINARY(32) NOT NULL,
  counter BIGINT NOT NULL,
  created_at_us BIGINT NOT NULL,
  proved_at_us BIGINT NOT NULL,
  rotated_at_us BIGINT NOT NULL,
  refresh_by_us BIGINT NOT NULL,
  expires_at_us BIGINT NOT NULL,
  revoked_at_us BIGINT NOT NULL,
  revoked_for VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  PRIMARY KEY (id),
  KEY daydo_auth_session_subject (tenant, subject),
  KEY daydo_auth_session_expiry (expires_at_us)
) ENGINE=InnoDB;

CREATE TABLE daydo_auth_revocation (
  id BIGINT NOT NULL AUTO_INCREMENT,
  kind VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  tenant VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  name VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  epoch BIGINT NOT NULL,
  at_us BIGINT NOT NULL,
  PRIMARY KEY (id),
  KEY daydo_auth_revocation_time (at_us)
) ENGINE=InnoDB;

CREATE TABLE daydo_auth_api_key (
  id VARCHAR(48) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  tenant VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  subject VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  kind VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  name VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  hashed VARBINARY(32) NOT NULL,
  scopes VARCHAR(2048) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  created_at_us BIGINT NOT NULL,
  expires_at_us BIGINT NOT NULL,
  revoked_at_us BIGINT NOT NULL,
  used_at_us BIGINT NOT NULL,
  PRIMARY KEY (id),
  KEY daydo_auth_api_key_subject (tenant, subject)
) ENGINE=InnoDB;
