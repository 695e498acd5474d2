-- Times are microseconds UTC by the database's clock; revoked_at_us 0 stands for not revoked.

CREATE TABLE daydo_auth_identity (
  tenant VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  login VARCHAR(254) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  subject VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  created_at_us BIGINT NOT NULL,
  PRIMARY KEY (tenant, login),
  KEY daydo_auth_identity_subject (tenant, subject)
) ENGINE=InnoDB;

CREATE TABLE daydo_auth_password (
  tenant VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  subject VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  hashed VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  changed_at_us BIGINT NOT NULL,
  PRIMARY KEY (tenant, subject)
) ENGINE=InnoDB;

CREATE TABLE daydo_auth_session (
  id VARCHAR(48) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
  tenant VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  subject VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  device VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  salt VARBINARY(32) NOT NULL,
  counter BIGINT NOT NULL,
  created_at_us BIGINT NOT NULL,
  rotated_at_us BIGINT NOT NULL,
  refresh_by_us BIGINT NOT NULL,
  expires_at_us BIGINT NOT NULL,
  revoked_at_us BIGINT NOT NULL,
  revoked_for VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  KEY daydo_auth_session_subject (tenant, subject),
  KEY daydo_auth_session_revoked (revoked_at_us)
) ENGINE=InnoDB;
