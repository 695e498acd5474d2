CREATE TABLE app_profile (
  id TEXT NOT NULL,
  tenant TEXT NOT NULL,
  phone TEXT,
  email TEXT,
  nickname TEXT,
  avatar TEXT,
  gender TEXT,
  referrer_id TEXT,
  created_at_us INTEGER NOT NULL,
  PRIMARY KEY (id)
);

CREATE INDEX app_profile_by_tenant ON app_profile (tenant, id);

CREATE INDEX app_profile_by_phone ON app_profile (tenant, phone);

CREATE INDEX app_profile_by_email ON app_profile (tenant, email);

CREATE TABLE app_invite (
  code TEXT NOT NULL,
  tenant TEXT NOT NULL,
  owner TEXT,
  op_key TEXT,
  taken_at_us INTEGER NOT NULL DEFAULT 0,
  claimed_by TEXT,
  claimed_at_us INTEGER NOT NULL DEFAULT 0,
  created_at_us INTEGER NOT NULL,
  PRIMARY KEY (code)
);

CREATE INDEX app_invite_by_owner ON app_invite (tenant, owner, taken_at_us, code);

CREATE INDEX app_invite_by_key ON app_invite (tenant, owner, op_key);

CREATE INDEX app_invite_by_claim ON app_invite (tenant, owner, claimed_by);

CREATE TABLE app_invite_pool (
  tenant TEXT NOT NULL,
  PRIMARY KEY (tenant)
);
