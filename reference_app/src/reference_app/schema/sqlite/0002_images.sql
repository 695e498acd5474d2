CREATE TABLE app_upload (
  id TEXT NOT NULL,
  tenant TEXT NOT NULL,
  subject TEXT NOT NULL,
  media_type TEXT NOT NULL,
  width INTEGER NOT NULL,
  height INTEGER NOT NULL,
  size_bytes INTEGER NOT NULL,
  created_at_us INTEGER NOT NULL,
  PRIMARY KEY (id)
);

CREATE INDEX app_upload_by_owner ON app_upload (tenant, subject);
