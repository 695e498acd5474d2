-- One row per flow version ever started with; never updated: running flows never change.
CREATE TABLE daydo_pipeline_def (
    name VARCHAR(48) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    version INT NOT NULL,
    hash CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    body MEDIUMTEXT CHARACTER SET utf8mb4 NOT NULL,
    created_at_us BIGINT NOT NULL,
    PRIMARY KEY (name, version)
) ENGINE=InnoDB;

-- The run row is the mutex of the run: every transition locks it first.
CREATE TABLE daydo_pipeline_run (
    id VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    tenant VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    subject VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    op_key VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    fingerprint CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    flow VARCHAR(48) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    version INT NOT NULL,
    def_hash CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    state VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    unit VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    amount BIGINT NOT NULL,
    inputs MEDIUMTEXT CHARACTER SET utf8mb4 NOT NULL,
    output MEDIUMTEXT CHARACTER SET utf8mb4 NULL,
    error TEXT CHARACTER SET utf8mb4 NULL,
    created_at_us BIGINT NOT NULL,
    deadline_us BIGINT NOT NULL,
    finished_at_us BIGINT NULL,
    PRIMARY KEY (id),
    -- The key first: beginning like the owner's index it would be taken for that, and lists would be sorted.
    UNIQUE KEY daydo_pipeline_run_key (op_key, tenant, subject),
    KEY daydo_pipeline_run_owner (tenant, subject, id),
    KEY daydo_pipeline_run_deadline (state, deadline_us)
) ENGINE=InnoDB;

-- worker_id is set while state is 'running' and only then; fence grows with every transition.
CREATE TABLE daydo_pipeline_step (
    run_id VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    n INT NOT NULL,
    name VARCHAR(48) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    provider VARCHAR(48) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    flow_key VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    state VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    fence BIGINT NOT NULL,
    worker_id VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin NULL,
    attempt INT NOT NULL,
    recoveries INT NOT NULL,
    deps_left INT NOT NULL,
    wake_at_us BIGINT NOT NULL,
    progress DOUBLE NOT NULL,
    output MEDIUMTEXT CHARACTER SET utf8mb4 NULL,
    error TEXT CHARACTER SET utf8mb4 NULL,
    started_at_us BIGINT NULL,
    finished_at_us BIGINT NULL,
    PRIMARY KEY (run_id, n),
    KEY daydo_pipeline_step_ready (state, wake_at_us),
    KEY daydo_pipeline_step_worker (worker_id)
) ENGINE=InnoDB;

-- One row per claim, written before the call: intended, then ok, failed, or unknown (nobody came back to say).
CREATE TABLE daydo_pipeline_attempt (
    run_id VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    n INT NOT NULL,
    fence BIGINT NOT NULL,
    attempt INT NOT NULL,
    worker_id VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    provider VARCHAR(48) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    provider_key VARCHAR(191) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    state VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    error_name VARCHAR(96) CHARACTER SET ascii COLLATE ascii_bin NULL,
    started_at_us BIGINT NOT NULL,
    finished_at_us BIGINT NULL,
    PRIMARY KEY (run_id, n, fence)
) ENGINE=InnoDB;

-- flows: JSON list of the flow versions ("cutout/1") that this process knows.
CREATE TABLE daydo_pipeline_worker (
    id VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    flows TEXT CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    started_at_us BIGINT NOT NULL,
    expires_at_us BIGINT NOT NULL,
    PRIMARY KEY (id)
) ENGINE=InnoDB;

-- seq is counted up under this row's lock, so an owner's events have no gaps and commit in the order of seq.
CREATE TABLE daydo_pipeline_owner (
    tenant VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    subject VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    seq BIGINT NOT NULL,
    PRIMARY KEY (tenant, subject)
) ENGINE=InnoDB;

CREATE TABLE daydo_pipeline_event (
    tenant VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    subject VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    seq BIGINT NOT NULL,
    run_id VARCHAR(40) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    name VARCHAR(48) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    body TEXT CHARACTER SET utf8mb4 NOT NULL,
    at_us BIGINT NOT NULL,
    PRIMARY KEY (tenant, subject, seq)
) ENGINE=InnoDB;
