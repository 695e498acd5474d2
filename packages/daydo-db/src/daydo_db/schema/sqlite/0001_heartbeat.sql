-- SQLite has no replicas; the table is here so that one list of packages fits both dialects.
CREATE TABLE daydo_db_heartbeat (
  id INTEGER NOT NULL,
  at_us INTEGER NOT NULL,
  PRIMARY KEY (id)
);

INSERT INTO daydo_db_heartbeat (id, at_us) VALUES (1, 0);
