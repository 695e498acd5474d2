CREATE TABLE app_profile (
  id TEXT NOT NULL,
  tenant TEXT NOT NULL,
  phone TEXT,
  email TEXT,
  created_at_us INTEGER NOT NULL,
  PRIMARY KEY (id)
);
