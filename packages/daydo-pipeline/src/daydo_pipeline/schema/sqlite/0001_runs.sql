-- One row per flow version ever started with; never updated: running flows never change.
CREATE TABLE daydo_pipeline_def (
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    hash TEXT NOT NULL,
    body TEXT NOT NULL,
    created_at_us INTEGER NOT NULL,
    PRIMARY KEY (name, version)
) WITHOUT ROWID;

-- The run row is the mutex of the run: every transition locks it first.
CREATE TABLE daydo_pipeline_run (
    id TEXT NOT NULL PRIMARY KEY,
    tenant TEXT NOT NULL,
    subject TEXT NOT NULL,
    op_key TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    flow TEXT NOT NULL,
    version INTEGER NOT NULL,
    def_hash TEXT NOT NULL,
    state TEXT NOT NULL,
    unit TEXT NOT NULL,
    amount INTEGER NOT NULL,
    inputs TEXT NOT NULL,
    output TEXT,
    error TEXT,
    created_at_us INTEGER NOT NULL,
    deadline_us INTEGER NOT NULL,
    finished_at_us INTEGER
) WITHOUT ROWID;
CREATE UNIQUE INDEX daydo_pipeline_run_key ON daydo_pipeline_run (op_key, tenant, subject);
CREATE INDEX daydo_pipeline_run_owner ON daydo_pipeline_run (tenant, subject, id);
CREATE INDEX daydo_pipeline_run_deadline ON daydo_pipeline_run (state, deadline_us);

-- worker_id is set while state is 'running' and only then; fence grows with every transition.
CREATE TABLE daydo_pipeline_step (
    run_id TEXT NOT NULL,
    n INTEGER NOT NULL,
    name TEXT NOT NULL,
    provider TEXT NOT NULL,
    flow_key TEXT NOT NULL,
    state TEXT NOT NULL,
    fence INTEGER NOT NULL,
    worker_id TEXT,
    attempt INTEGER NOT NULL,
    recoveries INTEGER NOT NULL,
    deps_left INTEGER NOT NULL,
    wake_at_us INTEGER NOT NULL,
    progress REAL NOT NULL,
    output TEXT,
    error TEXT,
    started_at_us INTEGER,
    finished_at_us INTEGER,
    PRIMARY KEY (run_id, n)
) WITHOUT ROWID;
CREATE INDEX daydo_pipeline_step_ready ON daydo_pipeline_step (state, wake_at_us);
CREATE INDEX daydo_pipeline_step_worker ON daydo_pipeline_step (worker_id);

-- One row per claim, written before the call: intended, then ok, failed, or unknown (nobody came back to say).
CREATE TABLE daydo_pipeline_attempt (
    run_id TEXT NOT NULL,
    n INTEGER NOT NULL,
    fence INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    worker_id TEXT NOT NULL,
    provider TEXT NOT NULL,
    provider_key TEXT NOT NULL,
    state TEXT NOT NULL,
    error_name TEXT,
    started_at_us INTEGER NOT NULL,
    finished_at_us INTEGER,
    PRIMARY KEY (run_id, n, fence)
) WITHOUT ROWID;

-- flows: JSON list of the flow versions ("cutout/1") that this process knows.
CREATE TABLE daydo_pipeline_worker (
    id TEXT NOT NULL PRIMARY KEY,
    flows TEXT NOT NULL,
    started_at_us INTEGER NOT NULL,
    expires_at_us INTEGER NOT NULL
) WITHOUT ROWID;

-- seq is counted up under this row's lock, so an owner's events have no gaps and commit in the order of seq.
CREATE TABLE daydo_pipeline_owner (
    tenant TEXT NOT NULL,
    subject TEXT NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (tenant, subject)
) WITHOUT ROWID;

CREATE TABLE daydo_pipeline_event (
    tenant TEXT NOT NULL,
    subject TEXT NOT NULL,
    seq INTEGER NOT NULL,
    run_id TEXT NOT NULL,
    name TEXT NOT NULL,
    body TEXT NOT NULL,
    at_us INTEGER NOT NULL,
    PRIMARY KEY (tenant, subject, seq)
) WITHOUT ROWID;
