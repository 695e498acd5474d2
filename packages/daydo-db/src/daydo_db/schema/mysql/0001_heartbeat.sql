-- The primary's time, moved on every second or so and replicated like everything else: how a replica's lag is measured.
CREATE TABLE daydo_db_heartbeat (
  id TINYINT NOT NULL,
  at_us BIGINT NOT NULL,
  PRIMARY KEY (id)
) ENGINE=InnoDB;

INSERT INTO daydo_db_heartbeat (id, at_us) VALUES (1, 0);
