CREATE TABLE app_profile (
  id VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  tenant VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  phone VARCHAR(20),
  email VARCHAR(254),
  nickname VARCHAR(32),
  avatar VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin,
  gender VARCHAR(8),
  referrer_id VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin,
  created_at_us BIGINT NOT NULL,
  PRIMARY KEY (id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 /*M! COLLATE=utf8mb4_nopad_bin */ /*!80017 COLLATE=utf8mb4_0900_bin */;

CREATE INDEX app_profile_by_tenant ON app_profile (tenant, id);

CREATE INDEX app_profile_by_phone ON app_profile (tenant, phone);

CREATE INDEX app_profile_by_email ON app_profile (tenant, email);

CREATE TABLE app_invite (
  code VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  tenant VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  owner VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin,
  op_key VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin,
  taken_at_us BIGINT NOT NULL DEFAULT 0,
  claimed_by VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin,
  claimed_at_us BIGINT NOT NULL DEFAULT 0,
  created_at_us BIGINT NOT NULL,
  PRIMARY KEY (code)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 /*M! COLLATE=utf8mb4_nopad_bin */ /*!80017 COLLATE=utf8mb4_0900_bin */;

CREATE INDEX app_invite_by_owner ON app_invite (tenant, owner, taken_at_us, code);

CREATE INDEX app_invite_by_key ON app_invite (tenant, owner, op_key);

CREATE INDEX app_invite_by_claim ON app_invite (tenant, owner, claimed_by);

CREATE TABLE app_invite_pool (
  tenant VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  PRIMARY KEY (tenant)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 /*M! COLLATE=utf8mb4_nopad_bin */ /*!80017 COLLATE=utf8mb4_0900_bin */;
